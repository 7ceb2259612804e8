# Libraries that a well-kept project has already written; docs/decisions.md says why each one is here.
find_package(Threads REQUIRED)
find_package(fmt REQUIRED)
find_package(spdlog REQUIRED)
find_package(CLI11 REQUIRED)
find_package(hwy REQUIRED)
find_package(prometheus-cpp REQUIRED)
find_package(Gloo REQUIRED)
set(Boost_USE_STATIC_LIBS ON)
find_package(Boost 1.81 REQUIRED COMPONENTS json)

# Neither ships a CMake package in Debian 12; both have static archives.
function(plait_static_library target header archive definition)
  find_path(${target}_INCLUDE_DIR ${header} REQUIRED)
  find_library(${target}_ARCHIVE ${archive} REQUIRED)
  add_library(${target} STATIC IMPORTED GLOBAL)
  set_target_properties(${target} PROPERTIES
    IMPORTED_LOCATION ${${target}_ARCHIVE}
    INTERFACE_INCLUDE_DIRECTORIES ${${target}_INCLUDE_DIR}
    INTERFACE_COMPILE_DEFINITIONS ${definition})
endfunction()
plait_static_library(pcre2_8 pcre2.h libpcre2-8.a PCRE2_CODE_UNIT_WIDTH=8)
plait_static_library(utf8proc utf8proc.h libutf8proc.a UTF8PROC_STATIC)
