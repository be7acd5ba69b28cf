# omni_library(NAME SOURCES a.cc b.cc DEPS x y): one per folder. Paths in #include lines are
# from the repository root.
function(omni_library name)
  cmake_parse_arguments(ARG "" "" "SOURCES;DEPS" ${ARGN})
  if(ARG_SOURCES)
    add_library(${name} STATIC ${ARG_SOURCES})
    target_include_directories(${name} PUBLIC ${PROJECT_SOURCE_DIR} ${PROJECT_BINARY_DIR})
    target_link_libraries(${name} PUBLIC ${ARG_DEPS})
    if(OMNI_UNITY)
      set_target_properties(${name} PROPERTIES UNITY_BUILD ON UNITY_BUILD_BATCH_SIZE 8)
      target_compile_options(${name} PRIVATE $<$<CXX_COMPILER_ID:GNU>:-Wno-subobject-linkage>)
    endif()
  else()
    add_library(${name} INTERFACE)
    target_include_directories(${name} INTERFACE ${PROJECT_SOURCE_DIR} ${PROJECT_BINARY_DIR})
    target_link_libraries(${name} INTERFACE ${ARG_DEPS})
  endif()
endfunction()

# omni_test(NAME SOURCES a_test.cc DEPS x LABELS unit [TIMEOUT seconds]): one binary, one CTest
# entry. Labels: unit, ranks (ranks as threads), parity, sim, e2e, gpu, slow; sanitize, for what
# `make asan` and `make tsan` run too; tsan, for what `make tsan` alone runs too.
function(omni_test name)
  cmake_parse_arguments(ARG "" "TIMEOUT" "SOURCES;DEPS;LABELS" ${ARGN})
  if(NOT ARG_TIMEOUT)
    set(ARG_TIMEOUT 900)  # dozens of times what it takes: machines differ, and may be busy
  endif()
  add_executable(${name} ${ARG_SOURCES})
  target_link_libraries(${name} PRIVATE ${ARG_DEPS} GTest::gmock GTest::gtest GTest::gtest_main)
  target_compile_definitions(${name} PRIVATE OMNI_SOURCE_DIR="${PROJECT_SOURCE_DIR}")
  add_test(NAME ${name} COMMAND ${name})
  set_tests_properties(${name} PROPERTIES LABELS "${ARG_LABELS}" TIMEOUT ${ARG_TIMEOUT})
  if("sanitize" IN_LIST ARG_LABELS OR
     ("tsan" IN_LIST ARG_LABELS AND "${OMNI_SANITIZE}" STREQUAL "thread"))
    add_dependencies(sanitizer_tests ${name})
  endif()
endfunction()

# omni_fuzzer(NAME SOURCES a_fuzzer.cc DEPS x): bin/NAME_fuzzer, seeds in tests/fuzz/corpus/NAME.
function(omni_fuzzer name)
  cmake_parse_arguments(ARG "" "" "SOURCES;DEPS" ${ARGN})
  add_executable(${name}_fuzzer ${ARG_SOURCES})
  target_link_libraries(${name}_fuzzer PRIVATE ${ARG_DEPS})
  target_link_options(${name}_fuzzer PRIVATE -fsanitize=fuzzer)
  add_dependencies(fuzzers ${name}_fuzzer)
endfunction()
