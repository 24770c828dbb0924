/* The driver: what torch asks it beside the runtime, and what Triton loads and launches its kernels with. */
#include "fake.h"
#include <cuda.h>
#include <stdlib.h>
#include <string.h>

CUresult cuInit(unsigned flags) { return CUDA_SUCCESS; }

CUresult cuDriverGetVersion(int *version) {
    *version = CUDART_VERSION;
    return CUDA_SUCCESS;
}

CUresult cuGetErrorString(CUresult error, const char **text) {
    *text = "an error of the fake CUDA driver";
    return CUDA_SUCCESS;
}

CUresult cuDeviceGet(CUdevice *device, int number) {
    *device = number;
    return number < device_count() ? CUDA_SUCCESS : CUDA_ERROR_INVALID_DEVICE;
}

CUresult cuDeviceGetAttribute(int *value, CUdevice_attribute attribute, CUdevice device) {
    return (CUresult)cudaDeviceGetAttribute(value, (enum cudaDeviceAttr)attribute, device); /* the same numbers */
}

/* A context is a device's number, counted from 1 so that none is NULL. */
static CUcontext context_of(int device) { return (CUcontext)(size_t)(device + 1); }

CUresult cuDevicePrimaryCtxGetState(CUdevice device, unsigned *flags, int *active) {
    *flags = 0;
    *active = has_context(device);
    return CUDA_SUCCESS;
}

CUresult cuDevicePrimaryCtxRetain(CUcontext *context, CUdevice device) {
    int before = current_device();
    CUresult error = (CUresult)cudaSetDevice(device); /* opens its context */
    if (!error) error = (CUresult)cudaSetDevice(before);
    *context = context_of(device);
    return error;
}

CUresult cuCtxGetCurrent(CUcontext *context) {
    *context = has_context(current_device()) ? context_of(current_device()) : NULL;
    return CUDA_SUCCESS;
}

CUresult cuCtxSetCurrent(CUcontext context) {
    return context ? (CUresult)cudaSetDevice((int)(size_t)context - 1) : CUDA_SUCCESS;
}

CUresult cuCtxSetLimit(CUlimit limit, size_t value) { return CUDA_SUCCESS; }

CUresult cuCtxGetLimit(size_t *value, CUlimit limit) {
    *value = 1 << 20;
    return CUDA_SUCCESS;
}

CUresult cuPointerGetAttribute(void *value, CUpointer_attribute attribute, CUdeviceptr address) {
    int device = current_device();
    enum place place = place_of((const void *)address, &device);
    switch (attribute) {
    case CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL: *(int *)value = device; break;
    case CU_POINTER_ATTRIBUTE_MEMORY_TYPE:
        *(unsigned *)value = place == ON_DEVICE ? CU_MEMORYTYPE_DEVICE : CU_MEMORYTYPE_HOST;
        break;
    case CU_POINTER_ATTRIBUTE_DEVICE_POINTER: *(CUdeviceptr *)value = address; break;
    default: return (CUresult)unsupported("cuPointerGetAttribute of this attribute", CUDA_ERROR_NOT_SUPPORTED);
    }
    return place == PAGEABLE ? CUDA_ERROR_INVALID_VALUE : CUDA_SUCCESS;
}

/* Modules hold no code here; a function is known by its name. */
CUresult cuModuleLoadData(CUmodule *module, const void *image) {
    use_device("cuModuleLoadData");
    *module = (CUmodule)1;
    return CUDA_SUCCESS;
}

CUresult cuModuleLoadDataEx(
    CUmodule *module, const void *image, unsigned options, CUjit_option *names, void **values) {
    return cuModuleLoadData(module, image);
}

CUresult cuModuleLoad(CUmodule *module, const char *path) { return cuModuleLoadData(module, path); }
CUresult cuModuleUnload(CUmodule module) { return CUDA_SUCCESS; }

CUresult cuModuleGetFunction(CUfunction *function, CUmodule module, const char *name) {
    *function = (CUfunction)new_kernel(NULL, strdup(name));
    return CUDA_SUCCESS;
}

CUresult cuFuncGetAttribute(int *value, CUfunction_attribute attribute, CUfunction function) {
    *value = attribute == CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK ? 1024 : 0;
    return CUDA_SUCCESS;
}

CUresult cuFuncSetAttribute(CUfunction function, CUfunction_attribute attribute, int value) { return CUDA_SUCCESS; }
CUresult cuFuncSetCacheConfig(CUfunction function, CUfunc_cache config) { return CUDA_SUCCESS; }

CUresult cuLaunchKernel(
    CUfunction function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x, unsigned block_y,
    unsigned block_z, unsigned bytes, CUstream stream, void **arguments, void **extra) {
    count_launch((struct kernel *)function);
    return CUDA_SUCCESS;
}

CUresult cuLaunchKernelEx(const CUlaunchConfig *sizes, CUfunction function, void **arguments, void **extra) {
    count_launch((struct kernel *)function);
    return CUDA_SUCCESS;
}

CUresult cuLaunchCooperativeKernel(
    CUfunction function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x, unsigned block_y,
    unsigned block_z, unsigned bytes, CUstream stream, void **arguments) {
    count_launch((struct kernel *)function);
    return CUDA_SUCCESS;
}

CUresult cuOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, CUfunction function, int block_size, size_t bytes) {
    *blocks = 2;
    return CUDA_SUCCESS;
}

CUresult cuOccupancyMaxActiveClusters(int *clusters, CUfunction function, const CUlaunchConfig *sizes) {
    *clusters = 1;
    return CUDA_SUCCESS;
}
