# Language level, warnings, build types, sanitizers, compiler cache.
set(CMAKE_CXX_STANDARD 20)
set(CMAKE_CXX_STANDARD_REQUIRED ON)
set(CMAKE_CXX_EXTENSIONS OFF)
set(CMAKE_POSITION_INDEPENDENT_CODE ON)

if(NOT CMAKE_BUILD_TYPE)
  set(CMAKE_BUILD_TYPE Release CACHE STRING "Debug, Release or Sanitize" FORCE)
endif()
set(CMAKE_CXX_FLAGS_RELEASE "-O2 -DNDEBUG")
set(CMAKE_CXX_FLAGS_SANITIZE "-O1 -g1 -fno-omit-frame-pointer")
set(CMAKE_C_FLAGS_SANITIZE "${CMAKE_CXX_FLAGS_SANITIZE}")

add_compile_options(-Wall -Wextra -Wno-missing-field-initializers)
# x86-64-v2 is the oldest machine a build runs on; wider instructions are chosen at run time, kernel by kernel.
if(CMAKE_SYSTEM_PROCESSOR STREQUAL "x86_64")
  add_compile_options(-march=x86-64-v2)
endif()
# a*b+c must round as written, so that results do not depend on what the optimiser fused
add_compile_options(-ffp-contract=off)

if(PLAIT_SANITIZE)
  add_compile_options(-fsanitize=${PLAIT_SANITIZE} -fno-sanitize-recover=all)
  add_link_options(-fsanitize=${PLAIT_SANITIZE})
endif()
if(PLAIT_FUZZ)
  add_compile_options(-fsanitize=fuzzer-no-link)
endif()

find_program(PLAIT_MOLD mold)
if(PLAIT_MOLD AND NOT PLAIT_SANITIZE)
  add_link_options(-fuse-ld=mold)
endif()

find_program(PLAIT_CCACHE ccache)
if(PLAIT_CCACHE)
  set(CMAKE_CXX_COMPILER_LAUNCHER
      ${CMAKE_COMMAND} -E env CCACHE_SLOPPINESS=pch_defines,time_macros,include_file_mtime,include_file_ctime
      CCACHE_BASEDIR=${CMAKE_SOURCE_DIR} CCACHE_NOHASHDIR=1 ${PLAIT_CCACHE})
endif()
