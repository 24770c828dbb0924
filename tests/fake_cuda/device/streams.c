/* Streams and events. All work is done when it is asked for: whoever waits goes on at once, and is reported. */
#include "fake.h"
#include <stdlib.h>
#include <time.h>

struct CUstream_st {
    int device;
    int priority;
};

struct CUevent_st {
    struct timespec recorded;
};

cudaError_t cudaStreamCreateWithPriority(cudaStream_t *stream, unsigned flags, int priority) {
    use_device("cudaStreamCreate");
    *stream = malloc(sizeof **stream);
    **stream = (struct CUstream_st){current_device(), priority};
    return cudaSuccess;
}

cudaError_t cudaStreamCreate(cudaStream_t *stream) { return cudaStreamCreateWithPriority(stream, 0, 0); }
cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned flags) {
    return cudaStreamCreateWithPriority(stream, flags, 0);
}

cudaError_t cudaStreamDestroy(cudaStream_t stream) {
    free(stream);
    return cudaSuccess;
}

/* NULL and two small numbers are the default streams, which every device has. */
static int is_default(cudaStream_t stream) { return (size_t)stream < 3; }

cudaError_t cudaStreamGetPriority(cudaStream_t stream, int *priority) {
    *priority = is_default(stream) ? 0 : stream->priority;
    return cudaSuccess;
}

cudaError_t cudaStreamQuery(cudaStream_t stream) { return cudaSuccess; }

cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
    use_device("cudaStreamSynchronize");
    int device = is_default(stream) ? current_device() : stream->device;
    report_with_stack("wait", "name=cudaStreamSynchronize\tdevice=%d", device);
    return cudaSuccess;
}

cudaError_t cudaDeviceSynchronize(void) {
    use_device("cudaDeviceSynchronize");
    report_with_stack("wait", "name=cudaDeviceSynchronize\tdevice=%d", current_device());
    return cudaSuccess;
}

/* A stream waits for another here, never the host. */
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned flags) { return cudaSuccess; }

cudaError_t cudaLaunchHostFunc(cudaStream_t stream, cudaHostFn_t function, void *argument) {
    function(argument);
    return cudaSuccess;
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned flags) {
    use_device("cudaEventCreate");
    *event = calloc(1, sizeof **event);
    return cudaSuccess;
}

cudaError_t cudaEventCreate(cudaEvent_t *event) { return cudaEventCreateWithFlags(event, 0); }

cudaError_t cudaEventDestroy(cudaEvent_t event) {
    free(event);
    return cudaSuccess;
}

cudaError_t cudaEventRecordWithFlags(cudaEvent_t event, cudaStream_t stream, unsigned flags) {
    use_device("cudaEventRecord");
    clock_gettime(CLOCK_MONOTONIC, &event->recorded);
    return cudaSuccess;
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
    return cudaEventRecordWithFlags(event, stream, 0);
}

cudaError_t cudaEventQuery(cudaEvent_t event) { return cudaSuccess; }

cudaError_t cudaEventSynchronize(cudaEvent_t event) {
    report_with_stack("wait", "name=cudaEventSynchronize\tdevice=%d", current_device());
    return cudaSuccess;
}

/* The host's own time between the two records: of the launches alone. */
cudaError_t cudaEventElapsedTime(float *milliseconds, cudaEvent_t from, cudaEvent_t to) {
    *milliseconds = (to->recorded.tv_sec - from->recorded.tv_sec) * 1e3f +
                    (to->recorded.tv_nsec - from->recorded.tv_nsec) / 1e6f;
    return cudaSuccess;
}

/* Nothing is ever captured into a graph: cudaStreamBeginCapture is one of the functions that are not supported. */
cudaError_t cudaStreamIsCapturing(cudaStream_t stream, enum cudaStreamCaptureStatus *status) {
    *status = cudaStreamCaptureStatusNone;
    return cudaSuccess;
}

/* The optional results may be NULL, and say nothing where nothing is captured. */
#if CUDART_VERSION < 13000
cudaError_t cudaStreamGetCaptureInfo_v2(
    cudaStream_t stream, enum cudaStreamCaptureStatus *status, unsigned long long *id, cudaGraph_t *graph,
    const cudaGraphNode_t **dependencies, size_t *count) {
#else
cudaError_t cudaStreamGetCaptureInfo(
    cudaStream_t stream, enum cudaStreamCaptureStatus *status, unsigned long long *id, cudaGraph_t *graph,
    const cudaGraphNode_t **dependencies, const cudaGraphEdgeData **edges, size_t *count) {
#endif
    if (id) *id = 0;
    return cudaStreamIsCapturing(stream, status);
}

cudaError_t cudaThreadExchangeStreamCaptureMode(enum cudaStreamCaptureMode *mode) { return cudaSuccess; }
