# cmake -DSOURCE=... -DOUT=... -P Commit.cmake: writes OUT, a header with the commit that SOURCE is
# at, and touches it only if that has changed. Run by every build (tools/CMakeLists.txt).
set(commit unknown)
# A folder of ours inside somebody else's repository has no commit.
if(EXISTS ${SOURCE}/.git)
  execute_process(COMMAND ${CMAKE_COMMAND} -E env GIT_OPTIONAL_LOCKS=0 git -C ${SOURCE} describe --always --dirty=+changes --abbrev=12 --exclude=*
                  OUTPUT_VARIABLE found RESULT_VARIABLE result ERROR_QUIET
                  OUTPUT_STRIP_TRAILING_WHITESPACE)
  if(result EQUAL 0)
    set(commit ${found})
  endif()
endif()
set(text "#pragma once\n#define OMNI_COMMIT \"${commit}\"\n")
set(before "")
if(EXISTS ${OUT})
  file(READ ${OUT} before)
endif()
if(NOT before STREQUAL text)
  file(WRITE ${OUT} ${text})
endif()
