/* Which devices there are, what they are, and which one a thread uses. */
#include "fake.h"
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static __thread int current = 0;
static int opened[MAX_DEVICES];

static int number_from(const char *variable, int otherwise) {
    const char *text = getenv(variable);
    return text && *text ? atoi(text) : otherwise;
}

/* CUDA_VISIBLE_DEVICES hides devices, and numbers from 0 those that are left. Returns their count, and in `physical`
 * the numbers that they have in the machine. */
static int visible_devices(int *physical) {
    int all = number_from("FAKE_CUDA_DEVICES", 1), count = 0;
    const char *visible = getenv("CUDA_VISIBLE_DEVICES");
    if (all > MAX_DEVICES) all = MAX_DEVICES;
    if (!visible) {
        for (; count < all; count++) physical[count] = count;
        return all;
    }
    for (const char *at = visible; *at && count < all; at = strchr(at, ',') ? strchr(at, ',') + 1 : "") {
        int device = *at >= '0' && *at <= '9' ? atoi(at) : -1;
        if (device < 0 || device >= all) break; /* as the real driver: what follows a wrong one is hidden too */
        physical[count++] = device;
    }
    return count;
}

int device_count(void) {
    int physical[MAX_DEVICES];
    return visible_devices(physical);
}

int capability(void) { return number_from("FAKE_CUDA_CAPABILITY", 70); }
size_t device_bytes(void) { return (capability() < 80 ? 32ul : 80ul) << 30; }
int current_device(void) { return current; }
int has_context(int device) { return opened[device]; }

void use_device(const char *function) {
    if (__sync_bool_compare_and_swap(&opened[current], 0, 1))
        report_with_stack("context", "device=%d\tname=%s", current, function);
}

static int shared_memory_of_block(void) { return capability() < 80 ? 98304 : 232448; }
static int processors(void) { return capability() < 80 ? 80 : 132; }

cudaError_t cudaGetDeviceCount(int *count) {
    *count = device_count();
    return *count ? cudaSuccess : cudaErrorNoDevice;
}

cudaError_t cudaGetDevice(int *device) {
    *device = current;
    return cudaSuccess;
}

cudaError_t cudaSetDevice(int device) {
    if (device < 0 || device >= device_count()) {
        report_with_stack("refused", "name=cudaSetDevice\tdevice=%d", device);
        return cudaErrorInvalidDevice;
    }
    current = device;
    use_device("cudaSetDevice"); /* opens a context since CUDA 12 */
    return cudaSuccess;
}

cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *of, int device) {
    int physical[MAX_DEVICES];
    if (device < 0 || device >= visible_devices(physical)) return cudaErrorInvalidDevice;
    memset(of, 0, sizeof *of);
    memcpy(of->uuid.bytes, "fake CUDA device", sizeof of->uuid.bytes);
    of->uuid.bytes[15] = (char)physical[device];
    strcpy(of->name, capability() < 80 ? "Tesla V100-SXM2-32GB" : "NVIDIA H100 80GB HBM3");
    of->major = capability() / 10;
    of->minor = capability() % 10;
    of->totalGlobalMem = device_bytes();
    of->multiProcessorCount = processors();
    of->warpSize = 32;
    of->maxThreadsPerBlock = 1024;
    of->maxThreadsPerMultiProcessor = 2048;
    of->maxBlocksPerMultiProcessor = 32;
    of->maxThreadsDim[0] = of->maxThreadsDim[1] = 1024;
    of->maxThreadsDim[2] = 64;
    of->maxGridSize[0] = 2147483647;
    of->maxGridSize[1] = of->maxGridSize[2] = 65535;
    of->sharedMemPerBlock = 49152;
    of->sharedMemPerBlockOptin = of->sharedMemPerMultiprocessor = shared_memory_of_block();
    of->regsPerBlock = of->regsPerMultiprocessor = 65536;
    of->l2CacheSize = 6 << 20;
    of->memoryBusWidth = 4096;
    of->unifiedAddressing = of->canMapHostMemory = of->concurrentKernels = 1;
    of->asyncEngineCount = 3;
#if CUDART_VERSION < 13000
    of->clockRate = 1500000;
    of->memoryClockRate = 900000;
#endif
    return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int *value, enum cudaDeviceAttr attribute, int device) {
    struct cudaDeviceProp of;
    if (cudaGetDeviceProperties(&of, device)) return cudaErrorInvalidDevice;
    switch (attribute) {
    case cudaDevAttrComputeCapabilityMajor: *value = of.major; break;
    case cudaDevAttrComputeCapabilityMinor: *value = of.minor; break;
    case cudaDevAttrMultiProcessorCount: *value = of.multiProcessorCount; break;
    case cudaDevAttrWarpSize: *value = of.warpSize; break;
    case cudaDevAttrMaxThreadsPerBlock: *value = of.maxThreadsPerBlock; break;
    case cudaDevAttrMaxThreadsPerMultiProcessor: *value = of.maxThreadsPerMultiProcessor; break;
    case cudaDevAttrMaxBlockDimX: *value = of.maxThreadsDim[0]; break;
    case cudaDevAttrMaxBlockDimY: *value = of.maxThreadsDim[1]; break;
    case cudaDevAttrMaxBlockDimZ: *value = of.maxThreadsDim[2]; break;
    case cudaDevAttrMaxGridDimX: *value = of.maxGridSize[0]; break;
    case cudaDevAttrMaxGridDimY: *value = of.maxGridSize[1]; break;
    case cudaDevAttrMaxGridDimZ: *value = of.maxGridSize[2]; break;
    case cudaDevAttrMaxSharedMemoryPerBlock: *value = (int)of.sharedMemPerBlock; break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = (int)of.sharedMemPerBlockOptin; break;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor: *value = (int)of.sharedMemPerMultiprocessor; break;
    case cudaDevAttrMaxRegistersPerBlock: *value = of.regsPerBlock; break;
    case cudaDevAttrMaxRegistersPerMultiprocessor: *value = of.regsPerMultiprocessor; break;
    case cudaDevAttrUnifiedAddressing: *value = of.unifiedAddressing; break;
    default: *value = 0; /* a feature that the device does not have */
    }
    return cudaSuccess;
}

cudaError_t cudaDeviceGetStreamPriorityRange(int *least, int *greatest) {
    *least = 0;
    *greatest = -5;
    return cudaSuccess;
}

cudaError_t cudaDriverGetVersion(int *version) {
    *version = CUDART_VERSION;
    return cudaSuccess;
}

cudaError_t cudaRuntimeGetVersion(int *version) {
    *version = CUDART_VERSION;
    return cudaSuccess;
}

cudaError_t cudaDeviceCanAccessPeer(int *can, int device, int peer) {
    *can = device != peer;
    return cudaSuccess;
}

cudaError_t cudaDeviceEnablePeerAccess(int peer, unsigned flags) {
    report_with_stack("peer", "name=cudaDeviceEnablePeerAccess\tdevice=%d\tfrom=%d", current, peer);
    return cudaSuccess;
}

cudaError_t cudaDeviceGetPCIBusId(char *text, int length, int device) {
    snprintf(text, length, "0000:%02x:00.0", device);
    return cudaSuccess;
}

/* Nothing fails late here. */
cudaError_t cudaGetLastError(void) { return cudaSuccess; }
cudaError_t cudaPeekAtLastError(void) { return cudaSuccess; }

const char *cudaGetErrorName(cudaError_t error) {
    switch (error) {
    case cudaSuccess: return "cudaSuccess";
    case cudaErrorInvalidDevice: return "cudaErrorInvalidDevice";
    case cudaErrorNoDevice: return "cudaErrorNoDevice";
    case cudaErrorMemoryAllocation: return "cudaErrorMemoryAllocation";
    case cudaErrorNotSupported: return "cudaErrorNotSupported";
    default: return "cudaErrorOfTheFakeDevice";
    }
}

const char *cudaGetErrorString(cudaError_t error) {
    switch (error) {
    case cudaSuccess: return "no error";
    case cudaErrorInvalidDevice: return "invalid device ordinal";
    case cudaErrorNoDevice: return "no CUDA-capable device is detected";
    case cudaErrorMemoryAllocation: return "out of memory";
    case cudaErrorNotSupported: return "not supported by the fake CUDA device";
    default: return "an error that the fake CUDA device does not name";
    }
}

/* The driver's functions by name: those of driver.c, and no others. */
cudaError_t cudaGetDriverEntryPointByVersion(
    const char *name, void **function, unsigned version, unsigned long long flags,
    enum cudaDriverEntryPointQueryResult *result) {
    *function = dlsym(RTLD_DEFAULT, name);
    if (result) *result = *function ? cudaDriverEntryPointSuccess : cudaDriverEntryPointSymbolNotFound;
    return cudaSuccess;
}

#if CUDART_VERSION < 13000
cudaError_t cudaGetDriverEntryPoint(
    const char *name, void **function, unsigned long long flags, enum cudaDriverEntryPointQueryResult *result) {
    return cudaGetDriverEntryPointByVersion(name, function, 0, flags, result);
}
#endif
