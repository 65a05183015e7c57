# The CUDA head.  CMakeLists.txt includes this file; nothing else of the build knows CUDA.
#
# The text of the kernels is installed beside the Python package in any case: CuPy compiles it with NVRTC where there is a
# GPU.  PYCAM_CUDA asks for a fatbin of them too, which needs no compiler where it is used:
#   AUTO  if there is an nvcc that can compile them
#   ON    or configuring fails and says why
#   OFF   no
# nvcc is called by itself and is no language of CMake: a fatbin is data, so no host compiler has to please nvcc.
# All of it is for Python: C and C++ programs have the kernels' text, and pycam/head/launch.py to read how it is launched.
if(NOT PYCAM_PYTHON)
  return()
endif()
set(PYCAM_CUDA AUTO CACHE STRING "compile the CUDA kernels with nvcc: AUTO, ON or OFF")
set_property(CACHE PYCAM_CUDA PROPERTY STRINGS AUTO ON OFF)

# Intermediate code for compute_75, which a driver compiles for its GPU once and caches, is always in; it takes 4 seconds.
# Machine code takes 12 seconds and 0.3 MB for each architecture, so it is for those who distribute: "80;90;120".
set(PYCAM_CUDA_ARCHITECTURES "" CACHE STRING "numbers of GPU architectures to compile machine code for")

set(cuda_text ${CMAKE_CURRENT_LIST_DIR}/cam_head.cuh)
set(cuda_parts)
foreach(part params weigh heatmap pixels)
  list(APPEND cuda_parts ${CMAKE_CURRENT_LIST_DIR}/cam_${part}.cuh)
endforeach()
install(FILES ${cuda_text} ${cuda_parts} DESTINATION pycam/cuda COMPONENT python)

# Why the kernels cannot be compiled, or "": nvcc has to be there, and to know what the text uses (CUDA 12.0 and later).
function(pycam_why_no_cuda result)
  find_program(PYCAM_NVCC nvcc HINTS ENV CUDA_PATH ENV CUDA_HOME PATHS /usr/local/cuda PATH_SUFFIXES bin)
  if(NOT PYCAM_NVCC)
    set(${result} "nvcc was not found (on PATH, in CUDA_PATH, CUDA_HOME or /usr/local/cuda)" PARENT_SCOPE)
    return()
  endif()
  execute_process(COMMAND ${PYCAM_NVCC} --version OUTPUT_VARIABLE version ERROR_VARIABLE error RESULT_VARIABLE status)
  if(NOT status EQUAL 0)
    set(${result} "${PYCAM_NVCC} --version failed: ${status} ${error}" PARENT_SCOPE)
  elseif(NOT version MATCHES "release ([0-9]+)\\.([0-9]+)")
    set(${result} "${PYCAM_NVCC} --version does not say which release it is" PARENT_SCOPE)
  elseif(CMAKE_MATCH_1 LESS 12)
    set(${result} "${PYCAM_NVCC} is release ${CMAKE_MATCH_1}.${CMAKE_MATCH_2}, and the kernels need 12.0" PARENT_SCOPE)
  else()
    set(${result} "" PARENT_SCOPE)
  endif()
endfunction()

set(cuda_found OFF)
if(NOT PYCAM_CUDA STREQUAL "OFF")
  pycam_why_no_cuda(why_no_cuda)
  if(why_no_cuda STREQUAL "")
    set(cuda_found ON)
  elseif(PYCAM_CUDA STREQUAL "ON")
    message(FATAL_ERROR "PYCAM_CUDA=ON, but ${why_no_cuda}")
  endif()
endif()
message(STATUS "pycam: CUDA kernels compiled by nvcc: ${cuda_found}")

if(cuda_found)
  set(cuda_code -gencode arch=compute_75,code=compute_75)
  foreach(architecture ${PYCAM_CUDA_ARCHITECTURES})
    list(APPEND cuda_code -gencode arch=compute_${architecture},code=sm_${architecture})
  endforeach()
  set(fatbin ${CMAKE_CURRENT_BINARY_DIR}/cam_head.fatbin)
  # -x cu: a header by its name.  --fmad=false: see NVRTC_OPTIONS in pycam/head/launch.py.
  add_custom_command(
    OUTPUT ${fatbin}
    COMMAND ${PYCAM_NVCC} -x cu -std=c++17 --fmad=false -fatbin -Xfatbin=-compress-all ${cuda_code} ${cuda_text} -o ${fatbin}
    DEPENDS ${cuda_text} ${cuda_parts}
    COMMENT "Compiling the CUDA kernels"
    VERBATIM)
  add_custom_target(pycam_cuda ALL DEPENDS ${fatbin})
  install(FILES ${fatbin} DESTINATION pycam/cuda COMPONENT python)
endif()
