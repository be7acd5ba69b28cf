set(CMAKE_CXX_STANDARD 20)
set(CMAKE_CXX_STANDARD_REQUIRED ON)
set(CMAKE_CXX_EXTENSIONS OFF)
set(CMAKE_POSITION_INDEPENDENT_CODE ON)
set(CMAKE_EXPORT_COMPILE_COMMANDS ON)
set(CMAKE_RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/bin)
set(CMAKE_LIBRARY_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/lib)
if(NOT CMAKE_BUILD_TYPE)
  set(CMAKE_BUILD_TYPE Release)
endif()

# x86-64-v3 (AVX2, FMA) is what every machine of the last ten years has; kernels that want
# more ask at run time.
# Options structs are initialised by name, the rest by default; that is no oversight.
add_compile_options(-Wall -Wextra -Werror -Wno-missing-field-initializers -march=x86-64-v3)
# Contracting a*b+c differs between compilers; the CPU kernels promise bits, so they say fma
# where they want it.
add_compile_options(-ffp-contract=off)
set(CMAKE_CXX_FLAGS_RELEASE "-O2 -DNDEBUG")
set(CMAKE_CXX_FLAGS_DEBUG "-O0 -g")

if(OMNI_SANITIZE)
  # What these builds are for is found at -O1 too: the largest file takes 41 s to compile, not 70.
  set(CMAKE_CXX_FLAGS_RELEASE "-O1 -DNDEBUG")
  add_compile_options(-fsanitize=${OMNI_SANITIZE} -fno-omit-frame-pointer -g1)
  add_link_options(-fsanitize=${OMNI_SANITIZE})
endif()

find_program(CCACHE ccache)
if(CCACHE)
  set(CMAKE_C_COMPILER_LAUNCHER ${CCACHE})
  set(CMAKE_CXX_COMPILER_LAUNCHER ${CCACHE})
endif()
find_program(MOLD mold)
if(MOLD)
  # OpenBLAS aligns code to 32 KiB. Without whole pages per segment, whether mold 1.10 gives that
  # code a segment of its own depends on where it lies, which depends on the number of segments: one
  # program in dozens never stops linking.
  add_link_options(-fuse-ld=mold -Wl,-z,separate-loadable-segments)
endif()
