# libpycam, shared and static, and what find_package and pkg-config know of it.
include(GNUInstallDirs)
include(CMakePackageConfigHelpers)

set(here ${CMAKE_CURRENT_LIST_DIR})
set(package_dir ${CMAKE_INSTALL_LIBDIR}/cmake/pycam)

add_library(pycam SHARED)
add_library(pycam_static STATIC)
foreach(library IN ITEMS pycam pycam_static)
  pycam_contains(${library})
  target_compile_options(${library} PRIVATE ${PYCAM_WARNINGS})
  target_include_directories(${library} INTERFACE
    $<BUILD_INTERFACE:${PROJECT_SOURCE_DIR}/csrc/include> $<INSTALL_INTERFACE:${CMAKE_INSTALL_INCLUDEDIR}>)
endforeach()

add_library(pycam::pycam ALIAS pycam)
target_compile_definitions(pycam PRIVATE PYCAM_BUILDING)
set_target_properties(pycam PROPERTIES VERSION ${PYCAM_VERSION} SOVERSION ${PYCAM_ABI})
if(UNIX AND NOT APPLE) # instances of the standard library's templates would be exported as well
  target_link_options(pycam PRIVATE "LINKER:--version-script=${here}/exported.map")
  set_property(TARGET pycam APPEND PROPERTY LINK_DEPENDS ${here}/exported.map)
endif()

# A C program that links the static library needs the C++ run time named, as the C compiler links without it.
add_library(pycam::static ALIAS pycam_static)
set_target_properties(pycam_static PROPERTIES EXPORT_NAME static)
if(NOT MSVC) # there the import library of the shared one has that name
  set_target_properties(pycam_static PROPERTIES OUTPUT_NAME pycam)
endif()
target_compile_definitions(pycam_static PUBLIC PYCAM_STATIC)
set(cxx_runtime ${CMAKE_CXX_IMPLICIT_LINK_LIBRARIES})
list(FILTER cxx_runtime INCLUDE REGEX "^(stdc[+][+]|c[+][+]|c[+][+]abi|m)$")
list(REMOVE_DUPLICATES cxx_runtime)
target_link_libraries(pycam_static INTERFACE ${cxx_runtime})

if(PYCAM_LIBRARY)
  install(TARGETS pycam pycam_static EXPORT pycamTargets
    RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR} COMPONENT library
    LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR} COMPONENT library
    ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR} COMPONENT library)
  install(FILES csrc/include/pycam.h DESTINATION ${CMAKE_INSTALL_INCLUDEDIR} COMPONENT library)
  install(EXPORT pycamTargets NAMESPACE pycam:: DESTINATION ${package_dir} COMPONENT library)

  configure_package_config_file(${here}/pycamConfig.cmake.in pycamConfig.cmake INSTALL_DESTINATION ${package_dir}
    NO_SET_AND_CHECK_MACRO)
  write_basic_package_version_file(pycamConfigVersion.cmake VERSION ${PYCAM_VERSION} COMPATIBILITY SameMinorVersion)
  install(FILES ${PROJECT_BINARY_DIR}/pycamConfig.cmake ${PROJECT_BINARY_DIR}/pycamConfigVersion.cmake
    DESTINATION ${package_dir} COMPONENT library)

  # pkg-config: paths relative to the file itself, so that an installed tree can be moved.
  if(IS_ABSOLUTE "${CMAKE_INSTALL_LIBDIR}")
    set(pc_prefix "${CMAKE_INSTALL_PREFIX}")
  else()
    file(RELATIVE_PATH up "/${CMAKE_INSTALL_LIBDIR}/pkgconfig" "/")
    string(REGEX REPLACE "/$" "" up "${up}")
    set(pc_prefix "\${pcfiledir}/${up}")
  endif()
  set(pc_libdir "\${prefix}")
  cmake_path(APPEND pc_libdir "${CMAKE_INSTALL_LIBDIR}")
  set(pc_includedir "\${prefix}")
  cmake_path(APPEND pc_includedir "${CMAKE_INSTALL_INCLUDEDIR}")
  list(TRANSFORM cxx_runtime PREPEND -l OUTPUT_VARIABLE cxx_flags)
  list(JOIN cxx_flags " " cxx_flags)
  set(pc_name pycam)
  set(pc_cflags "")
  set(pc_libs "-L\${libdir} -lpycam")
  set(pc_private "${cxx_flags} -pthread")
  configure_file(${here}/pycam.pc.in pycam.pc @ONLY)
  set(pc_name pycam-static)
  set(pc_cflags "-DPYCAM_STATIC")
  set(pc_libs "\${libdir}/$<TARGET_FILE_NAME:pycam_static> ${cxx_flags} -pthread")
  set(pc_private "")
  configure_file(${here}/pycam.pc.in pycam-static.pc.in @ONLY)
  file(GENERATE OUTPUT ${PROJECT_BINARY_DIR}/pycam-static.pc INPUT ${PROJECT_BINARY_DIR}/pycam-static.pc.in)
  install(FILES ${PROJECT_BINARY_DIR}/pycam.pc ${PROJECT_BINARY_DIR}/pycam-static.pc
    DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig COMPONENT library)
endif()
