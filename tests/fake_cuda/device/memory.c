/* Memory of the devices and pinned memory of the host: both are ordinary memory, and known by their address.
 * Pages are given by the system when they are first written to, so that what only kernels would write costs nothing. */
#include "fake.h"
#include <pthread.h>
#include <string.h>
#include <sys/mman.h>

#define MAX_BLOCKS 65536

static struct block {
    char *start; /* NULL: free for another */
    size_t bytes;
    enum place place;
    int device;
} blocks[MAX_BLOCKS];
static int used_blocks = 0;
static size_t held[MAX_DEVICES];
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

size_t bytes_on(int device) { return held[device]; }

static cudaError_t give(void **address, size_t bytes, enum place place) {
    int device = current_device(), n = 0;
    if (place == ON_DEVICE && held[device] + bytes > device_bytes()) return cudaErrorMemoryAllocation;
    int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    void *start = mmap(NULL, bytes ? bytes : 1, PROT_READ | PROT_WRITE, flags, -1, 0);
    if (start == MAP_FAILED) return cudaErrorMemoryAllocation;
    pthread_mutex_lock(&lock);
    while (n < used_blocks && blocks[n].start) n++;
    if (n == used_blocks && n < MAX_BLOCKS) used_blocks++;
    if (n < MAX_BLOCKS) {
        blocks[n] = (struct block){start, bytes, place, device};
        if (place == ON_DEVICE) held[device] += bytes;
    }
    pthread_mutex_unlock(&lock);
    *address = start;
    return n < MAX_BLOCKS ? cudaSuccess : cudaErrorMemoryAllocation;
}

static cudaError_t take_back(void *address) {
    cudaError_t error = address ? cudaErrorInvalidValue : cudaSuccess;
    pthread_mutex_lock(&lock);
    for (int n = 0; address && n < used_blocks; n++)
        if (blocks[n].start == address) {
            if (blocks[n].place == ON_DEVICE) held[blocks[n].device] -= blocks[n].bytes;
            munmap(address, blocks[n].bytes ? blocks[n].bytes : 1);
            blocks[n].start = NULL;
            error = cudaSuccess;
            break;
        }
    pthread_mutex_unlock(&lock);
    return error;
}

enum place place_of(const void *address, int *device) {
    enum place place = PAGEABLE;
    pthread_mutex_lock(&lock);
    for (int n = 0; n < used_blocks; n++) {
        const struct block *b = &blocks[n];
        if (b->start && (const char *)address >= b->start && (const char *)address < b->start + b->bytes) {
            place = b->place;
            if (device) *device = b->device;
            break;
        }
    }
    pthread_mutex_unlock(&lock);
    return place;
}

cudaError_t cudaMalloc(void **address, size_t bytes) {
    use_device("cudaMalloc");
    cudaError_t error = give(address, bytes, ON_DEVICE);
    report("allocation", "name=cudaMalloc\tdevice=%d\tbytes=%zu", current_device(), bytes);
    return error;
}

cudaError_t cudaFree(void *address) {
    use_device("cudaFree");
    if (address) report_with_stack("allocation", "name=cudaFree\tdevice=%d", current_device());
    return take_back(address);
}

cudaError_t cudaHostAlloc(void **address, size_t bytes, unsigned flags) {
    use_device("cudaHostAlloc");
    report_with_stack("allocation", "name=cudaHostAlloc\tbytes=%zu", bytes);
    return give(address, bytes, PINNED);
}

cudaError_t cudaFreeHost(void *address) {
    report_with_stack("allocation", "name=cudaFreeHost");
    return take_back(address);
}

cudaError_t cudaMemGetInfo(size_t *free_bytes, size_t *total) {
    use_device("cudaMemGetInfo");
    *total = device_bytes();
    *free_bytes = *total - held[current_device()];
    return cudaSuccess;
}

cudaError_t cudaPointerGetAttributes(struct cudaPointerAttributes *of, const void *address) {
    static const enum cudaMemoryType types[] = {
        cudaMemoryTypeUnregistered, cudaMemoryTypeHost, cudaMemoryTypeDevice};
    int device = cudaInvalidDeviceId;
    memset(of, 0, sizeof *of);
    of->type = types[place_of(address, &device)];
    of->device = device;
    of->devicePointer = of->type == cudaMemoryTypeUnregistered ? NULL : (void *)address;
    of->hostPointer = of->type == cudaMemoryTypeDevice ? NULL : (void *)address;
    return cudaSuccess;
}

/* A copy between a device and memory that is not pinned: the driver goes through a buffer of its own, and the host
 * waits for it where it reads. */
static void tell_pageable(const char *function, const void *to, const void *from, size_t bytes) {
    enum place target = place_of(to, NULL), source = place_of(from, NULL);
    if (target == ON_DEVICE && source == PAGEABLE)
        report_with_stack("pageable", "name=%s\tto=device\tbytes=%zu", function, bytes);
    if (target == PAGEABLE && source == ON_DEVICE)
        report_with_stack("pageable", "name=%s\tto=host\tbytes=%zu", function, bytes);
}

cudaError_t cudaMemcpy(void *to, const void *from, size_t bytes, enum cudaMemcpyKind kind) {
    use_device("cudaMemcpy");
    tell_pageable("cudaMemcpy", to, from, bytes);
    report_with_stack("wait", "name=cudaMemcpy\tdevice=%d", current_device());
    memmove(to, from, bytes);
    return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, enum cudaMemcpyKind kind, cudaStream_t stream) {
    use_device("cudaMemcpyAsync");
    tell_pageable("cudaMemcpyAsync", to, from, bytes);
    memmove(to, from, bytes);
    return cudaSuccess;
}

cudaError_t cudaMemcpy2DAsync(
    void *to, size_t to_pitch, const void *from, size_t from_pitch, size_t width, size_t height,
    enum cudaMemcpyKind kind, cudaStream_t stream) {
    use_device("cudaMemcpy2DAsync");
    tell_pageable("cudaMemcpy2DAsync", to, from, width * height);
    for (size_t row = 0; row < height; row++)
        memmove((char *)to + row * to_pitch, (const char *)from + row * from_pitch, width);
    return cudaSuccess;
}

cudaError_t cudaMemcpyPeerAsync(
    void *to, int to_device, const void *from, int from_device, size_t bytes, cudaStream_t stream) {
    report_with_stack("peer", "name=cudaMemcpyPeerAsync\tdevice=%d\tfrom=%d", to_device, from_device);
    memmove(to, from, bytes);
    return cudaSuccess;
}

cudaError_t cudaMemset(void *to, int value, size_t bytes) {
    use_device("cudaMemset");
    memset(to, value, bytes);
    return cudaSuccess;
}

cudaError_t cudaMemsetAsync(void *to, int value, size_t bytes, cudaStream_t stream) {
    return cudaMemset(to, value, bytes);
}
