/* Kernels: a program registers those that it holds when it is loaded; a launch is counted under the kernel's name. */
#include "fake.h"
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define BUCKETS 65536

static struct kernel *by_address[BUCKETS], *all_kernels;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static size_t bucket(const void *host) { return ((uintptr_t)host >> 4) % BUCKETS; }

struct kernel *new_kernel(const void *host, const char *name) {
    struct kernel *kernel = calloc(1, sizeof *kernel);
    kernel->host = host;
    kernel->name = name;
    pthread_mutex_lock(&lock);
    kernel->next = by_address[bucket(host)];
    by_address[bucket(host)] = kernel;
    kernel->all = all_kernels;
    all_kernels = kernel;
    pthread_mutex_unlock(&lock);
    return kernel;
}

static struct kernel *find(const void *host) {
    struct kernel *kernel = by_address[bucket(host)];
    while (kernel && kernel->host != host) kernel = kernel->next;
    return kernel;
}

void count_launch(struct kernel *kernel) {
    use_device("a launch");
    __sync_add_and_fetch(&kernel->launches, 1);
}

void report_kernels(void) {
    pthread_mutex_lock(&lock);
    for (struct kernel *kernel = all_kernels; kernel; kernel = kernel->all) {
        long launches = __sync_lock_test_and_set(&kernel->launches, 0);
        if (launches) report("kernel", "launches=%ld\tname=%s", launches, kernel->name);
    }
    pthread_mutex_unlock(&lock);
}

/* What nvcc writes into a program's start. */
void **__cudaRegisterFatBinary(void *binary) {
    static void *handle[1];
    return handle;
}
void __cudaRegisterFatBinaryEnd(void **handle) {}
void __cudaUnregisterFatBinary(void **handle) {}
char __cudaInitModule(void **handle) { return 1; }
void __cudaRegisterVar(
    void **handle, char *variable, char *address, const char *name, int external, size_t bytes, int constant,
    int global) {}
void __cudaRegisterFunction(
    void **handle, const char *host, char *on_device, const char *name, int thread_limit, void *thread, void *block,
    void *block_size, void *grid_size, int *warp_size) {
    new_kernel(host, name);
}

/* kernel<<<grid, block, bytes, stream>>>(…) pushes its sizes, and the function that is called in it pops them. */
static __thread struct {
    dim3 grid, block;
    size_t bytes;
    void *stream;
} pushed;

unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t bytes, struct CUstream_st *stream) {
    pushed.grid = grid;
    pushed.block = block;
    pushed.bytes = bytes;
    pushed.stream = stream;
    return 0;
}

cudaError_t __cudaPopCallConfiguration(dim3 *grid, dim3 *block, size_t *bytes, void *stream) {
    *grid = pushed.grid;
    *block = pushed.block;
    *bytes = pushed.bytes;
    *(void **)stream = pushed.stream;
    return cudaSuccess;
}

cudaError_t cudaLaunchKernel(
    const void *host, dim3 grid, dim3 block, void **arguments, size_t bytes, cudaStream_t stream) {
    struct kernel *kernel = find(host);
    if (!kernel) return cudaErrorInvalidDeviceFunction;
    count_launch(kernel);
    return cudaSuccess;
}

cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t *sizes, const void *host, void **arguments) {
    return cudaLaunchKernel(host, sizes->gridDim, sizes->blockDim, arguments, sizes->dynamicSmemBytes, sizes->stream);
}

cudaError_t cudaLaunchCooperativeKernel(
    const void *host, dim3 grid, dim3 block, void **arguments, size_t bytes, cudaStream_t stream) {
    return cudaLaunchKernel(host, grid, block, arguments, bytes, stream);
}

/* The form of a launch that nvcc writes from CUDA 13 on: the kernel is looked up once. */
cudaError_t __cudaGetKernel(cudaKernel_t *kernel, const void *host) {
    *kernel = (cudaKernel_t)find(host);
    return *kernel ? cudaSuccess : cudaErrorInvalidDeviceFunction;
}

cudaError_t __cudaLaunchKernel(
    cudaKernel_t kernel, dim3 grid, dim3 block, void **arguments, size_t bytes, cudaStream_t stream) {
    if (!kernel) return cudaErrorInvalidDeviceFunction;
    count_launch((struct kernel *)kernel);
    return cudaSuccess;
}

cudaError_t cudaFuncGetAttributes(struct cudaFuncAttributes *of, const void *host) {
    memset(of, 0, sizeof *of);
    of->binaryVersion = of->ptxVersion = capability();
    of->maxThreadsPerBlock = 1024;
    of->numRegs = 32;
    return cudaSuccess;
}

cudaError_t cudaFuncSetAttribute(const void *host, enum cudaFuncAttribute attribute, int value) { return cudaSuccess; }

cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(
    int *blocks, const void *host, int block_size, size_t bytes, unsigned flags) {
    *blocks = 2;
    return cudaSuccess;
}

cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, const void *host, int block_size, size_t bytes) {
    return cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(blocks, host, block_size, bytes, 0);
}

cudaError_t cudaGetSymbolAddress(void **address, const void *symbol) { return cudaMalloc(address, 1 << 16); }
