// What plugin_test.cc opens.
extern "C" __attribute__((visibility("default"))) int OmniTestEntry() { return 7; }
