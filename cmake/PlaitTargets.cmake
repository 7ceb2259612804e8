# One static library per directory of src/, one test program per directory of tests/.

# A directory that has no CMakeLists.txt yet is skipped.
function(plait_add_directory directory)
  if(EXISTS ${CMAKE_CURRENT_SOURCE_DIR}/${directory}/CMakeLists.txt)
    add_subdirectory(${directory})
  endif()
endfunction()

# With the preset `tidy` a library's sources are compiled together, because reading the same headers for each of them is
# what tidying takes long for. Not together: these, whose names meet a sibling's, and what Highway compiles repeatedly.
set(PLAIT_LONE_SOURCES
  attention_expanded_fast.cpp chat_deepseek_v31.cpp engine_setup.cpp http_parser.cpp ledger.cpp native_api.cpp
  node_exchange.cpp openai_chat.cpp openai_common.cpp openai_completions.cpp plan_flags.cpp planner.cpp prompts.cpp
  rank_backend.cpp rank_team.cpp request_fields.cpp sampling_params.cpp shard_index.cpp sum.cpp version.cpp
  vocabulary_scan.cpp weight_loader.cpp)
function(plait_separate_lone_sources)
  foreach(source ${ARGN})
    file(STRINGS ${source} highway REGEX "define HWY_TARGET_INCLUDE")
    get_filename_component(name ${source} NAME)
    if(highway OR name IN_LIST PLAIT_LONE_SOURCES)
      set_source_files_properties(${source} PROPERTIES SKIP_UNITY_BUILD_INCLUSION ON)
    endif()
  endforeach()
endfunction()

# plait_library(NAME SOURCES file... DEPENDS target...)
# Makes libplait_NAME with `#include "NAME/..."` for its users.
function(plait_library name)
  cmake_parse_arguments(arg "" "" "SOURCES;DEPENDS" ${ARGN})
  add_library(plait_${name} STATIC ${arg_SOURCES})
  if(CMAKE_UNITY_BUILD)
    plait_separate_lone_sources(${arg_SOURCES})
  endif()
  target_include_directories(plait_${name} PUBLIC ${CMAKE_SOURCE_DIR}/src)
  target_link_libraries(plait_${name} PUBLIC ${arg_DEPENDS})
  if(name STREQUAL "base")
    target_precompile_headers(plait_${name} PRIVATE ${CMAKE_SOURCE_DIR}/src/base/precompiled.h)
  else()
    target_precompile_headers(plait_${name} REUSE_FROM plait_base)
  endif()
endfunction()

# plait_test(NAME SOURCES file... DEPENDS target... [LABELS label...])
# A GoogleTest program `NAME_test`, one CTest entry. Label `threads` also runs it under the thread sanitizer.
# Tests find the repository through the definition PLAIT_SOURCE_DIR.
function(plait_test name)
  cmake_parse_arguments(arg "" "" "SOURCES;DEPENDS;LABELS" ${ARGN})
  add_executable(${name}_test ${arg_SOURCES})
  target_link_libraries(${name}_test PRIVATE ${arg_DEPENDS} GTest::gtest GTest::gmock GTest::gtest_main)
  target_compile_definitions(${name}_test PRIVATE PLAIT_SOURCE_DIR="${CMAKE_SOURCE_DIR}")
  target_include_directories(${name}_test PRIVATE ${CMAKE_SOURCE_DIR})
  add_test(NAME ${name} COMMAND ${name}_test)
  set_tests_properties(${name} PROPERTIES LABELS "${arg_LABELS}" TIMEOUT 900)
endfunction()

# plait_fuzzer(NAME SOURCES file... DEPENDS target...): libFuzzer target NAME_fuzzer, corpus in fuzz/corpus/NAME.
function(plait_fuzzer name)
  cmake_parse_arguments(arg "" "" "SOURCES;DEPENDS" ${ARGN})
  add_executable(${name}_fuzzer ${arg_SOURCES})
  target_link_libraries(${name}_fuzzer PRIVATE ${arg_DEPENDS})
  target_link_options(${name}_fuzzer PRIVATE -fsanitize=fuzzer)
  target_include_directories(${name}_fuzzer PRIVATE ${CMAKE_SOURCE_DIR})
endfunction()
