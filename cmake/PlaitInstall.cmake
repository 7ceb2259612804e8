# `cmake --install build/release --prefix DIR` makes a folder that can be copied anywhere:
#   bin/plait, lib/ (every shared library that it needs beyond glibc), share/plait/models/demo-fp8, LICENSE, README.md
# The program finds lib/ through its run path. DT_RPATH, not DT_RUNPATH, because only the former also holds for the
# libraries' own libraries.
target_link_options(plait PRIVATE LINKER:--disable-new-dtags)
set_target_properties(plait PROPERTIES INSTALL_RPATH "$ORIGIN/../lib")

install(TARGETS plait
  RUNTIME_DEPENDENCIES
    PRE_EXCLUDE_REGEXES "^ld-linux" "^lib(c|m|mvec|dl|rt|pthread|resolv)\\.so"
  RUNTIME DESTINATION bin
  LIBRARY DESTINATION lib)
install(DIRECTORY ${CMAKE_SOURCE_DIR}/models/demo-fp8 DESTINATION share/plait/models
  PATTERN "expected.safetensors" EXCLUDE)
install(FILES ${CMAKE_SOURCE_DIR}/LICENSE ${CMAKE_SOURCE_DIR}/README.md DESTINATION share/plait)
