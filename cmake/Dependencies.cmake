# Everything comes from Debian's packages (tools/setup.sh installs them).
find_package(Threads REQUIRED)
find_package(Protobuf REQUIRED)  # before gRPC: Debian ships no CONFIG file for it
find_package(gRPC CONFIG REQUIRED)
find_package(absl CONFIG REQUIRED)
find_package(yaml-cpp CONFIG REQUIRED)
find_package(spdlog CONFIG REQUIRED)
find_package(nlohmann_json CONFIG REQUIRED)
find_package(prometheus-cpp CONFIG REQUIRED)
find_package(CLI11 CONFIG REQUIRED)
find_package(JPEG REQUIRED)
find_package(PNG REQUIRED)
find_package(LibArchive REQUIRED)
find_package(Freetype REQUIRED)
find_package(PkgConfig REQUIRED)
pkg_check_modules(turbojpeg REQUIRED IMPORTED_TARGET libturbojpeg)
pkg_check_modules(webp REQUIRED IMPORTED_TARGET libwebp)
pkg_check_modules(sndfile REQUIRED IMPORTED_TARGET sndfile)
pkg_check_modules(sentencepiece REQUIRED IMPORTED_TARGET sentencepiece)
pkg_check_modules(pcre2 REQUIRED IMPORTED_TARGET libpcre2-8)
pkg_check_modules(utf8proc REQUIRED IMPORTED_TARGET libutf8proc)
pkg_check_modules(xxhash REQUIRED IMPORTED_TARGET libxxhash)
pkg_check_modules(zstd REQUIRED IMPORTED_TARGET libzstd)
pkg_check_modules(ffmpeg REQUIRED IMPORTED_TARGET
                  libavformat libavcodec libavutil libswscale libswresample)
pkg_check_modules(espeak REQUIRED IMPORTED_TARGET espeak-ng)
if(OMNI_BUILD_TESTS)
  find_package(GTest REQUIRED)
  find_package(benchmark REQUIRED)
endif()

# Serial OpenBLAS, linked statically: threads are ours (runtime/device/thread_pool.h), so the
# result never depends on how many there are.
find_library(OPENBLAS_SERIAL libopenblas.a
             PATHS /usr/lib/${CMAKE_LIBRARY_ARCHITECTURE}/openblas-serial NO_DEFAULT_PATH REQUIRED)
find_path(OPENBLAS_INCLUDE cblas.h
          PATHS /usr/include/${CMAKE_LIBRARY_ARCHITECTURE}/openblas-serial NO_DEFAULT_PATH REQUIRED)
add_library(omni_openblas INTERFACE)
target_link_libraries(omni_openblas INTERFACE ${OPENBLAS_SERIAL} m gfortran)
# The serial build hands out its work buffers without a lock; runtime/device/cpu/gemm.cc adds it.
target_link_options(omni_openblas INTERFACE LINKER:--wrap=blas_memory_alloc)
target_include_directories(omni_openblas SYSTEM INTERFACE ${OPENBLAS_INCLUDE})

# CUDA's headers are enough for the kernels and the emulated GPU they are tested on; nvcc, where it is
# there, also compiles them for GPUs (target cuda_kernels).
set(OMNI_CUDA OFF)
if(NOT OMNI_ENABLE_CUDA STREQUAL OFF)
  find_path(OMNI_CUDA_INCLUDE cublasLt.h  # whose headers come with those of the runtime
            PATHS $ENV{CUDA_HOME}/include $ENV{CUDA_PATH}/include /usr/local/cuda/include)
  if(OMNI_CUDA_INCLUDE AND CMAKE_SYSTEM_PROCESSOR STREQUAL x86_64)
    set(OMNI_CUDA ON)
  elseif(OMNI_ENABLE_CUDA STREQUAL ON)
    message(FATAL_ERROR "OMNI_ENABLE_CUDA is ON, but there is no cublasLt.h; set CUDA_HOME, "
                        "or OMNI_ENABLE_CUDA=OFF")
  endif()
endif()
