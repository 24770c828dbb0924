/* NCCL between processes of one machine: each collective is an exchange of files in $FAKE_CUDA_NCCL, done at once.
 *
 * Every call is reported, with host=1 where a buffer is no device memory: NCCL would fail on it, or worse. Sums of half
 * precision are left out, for no kernel has computed what they would add; whole numbers and float32/64 are right, since
 * torch's own exchange of objects needs them. */
#include "fake.h"
#define __CUDA_FP16_H__ /* these want C++ headers that no wheel has, for functions that are not used here */
#define __CUDA_BF16_H__
#define __CUDA_FP8_H__
#include <nccl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define PATIENCE 120.0 /* seconds that a rank waits for another's file */

struct ncclComm {
    char id[64];
    int ranks, rank;
    int splits;
    long exchanges; /* done so far: names the files of the next */
};

static size_t width(ncclDataType_t type) {
    switch (type) {
    case ncclFloat16:
    case ncclBfloat16: return 2;
    case ncclInt32:
    case ncclUint32:
    case ncclFloat32: return 4;
    case ncclInt64:
    case ncclUint64:
    case ncclFloat64: return 8;
    default: return 1;
    }
}

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

static void file_of(char *path, size_t size, const struct ncclComm *comm, long exchange, int rank) {
    const char *folder = getenv("FAKE_CUDA_NCCL");
    snprintf(path, size, "%s/%s.%ld.%d", folder ? folder : "/tmp", comm->id, exchange, rank);
}

static int read_whole(const char *path, char *into, size_t bytes) {
    FILE *file = fopen(path, "r");
    if (!file) return 0;
    size_t got = fread(into, 1, bytes, file);
    int more = fgetc(file) != EOF;
    fclose(file);
    return got == bytes && !more;
}

/* Every rank's `bytes` bytes, in the order of ranks; to be freed. NULL: a rank did not come, or with another size. */
static char *exchange(struct ncclComm *comm, const void *mine, size_t bytes) {
    char path[512], beside[520], *all = malloc(bytes * comm->ranks + 1);
    memcpy(all + bytes * comm->rank, mine, bytes);
    if (comm->ranks == 1) return all;
    file_of(path, sizeof path, comm, comm->exchanges, comm->rank);
    snprintf(beside, sizeof beside, "%s.part", path);
    FILE *file = fopen(beside, "w");
    if (!file || fwrite(mine, 1, bytes, file) != bytes || fclose(file) || rename(beside, path)) return NULL;
    double since = now();
    for (int rank = 0; rank < comm->ranks; rank++) {
        if (rank == comm->rank) continue;
        file_of(path, sizeof path, comm, comm->exchanges, rank);
        while (access(path, F_OK)) {
            if (now() - since > PATIENCE) return NULL;
            usleep(200);
        }
        if (!read_whole(path, all + bytes * rank, bytes)) {
            fprintf(stderr, "fake NCCL: rank %d expects %zu bytes of rank %d in %s\n", comm->rank, bytes, rank, path);
            return NULL;
        }
    }
    if (comm->exchanges > 0) { /* that all are here says that all have read the last one */
        file_of(path, sizeof path, comm, comm->exchanges - 1, comm->rank);
        unlink(path);
    }
    comm->exchanges++;
    return all;
}

static struct ncclComm *new_comm(const char *id, int ranks, int rank) {
    struct ncclComm *comm = calloc(1, sizeof *comm);
    snprintf(comm->id, sizeof comm->id, "%s", id);
    comm->ranks = ranks;
    comm->rank = rank;
    return comm;
}

ncclResult_t ncclGetVersion(int *version) {
    *version = NCCL_VERSION_CODE;
    return ncclSuccess;
}

ncclResult_t ncclGetUniqueId(ncclUniqueId *id) {
    static int number = 0;
    memset(id, 0, sizeof *id);
    snprintf(id->internal, sizeof id->internal, "nccl-%d-%ld-%d", (int)getpid(), (long)time(NULL), number++);
    return ncclSuccess;
}

ncclResult_t ncclCommInitRankConfig(ncclComm_t *comm, int ranks, ncclUniqueId id, int rank, ncclConfig_t *config) {
    use_device("ncclCommInitRank");
    report("nccl", "name=init\tranks=%d\tdevice=%d", ranks, current_device());
    *comm = new_comm(id.internal, ranks, rank);
    return ncclSuccess;
}

ncclResult_t ncclCommInitRank(ncclComm_t *comm, int ranks, ncclUniqueId id, int rank) {
    return ncclCommInitRankConfig(comm, ranks, id, rank, NULL);
}

ncclResult_t ncclCommInitRankScalable(
    ncclComm_t *comm, int ranks, int rank, int ids, ncclUniqueId *id, ncclConfig_t *config) {
    return ncclCommInitRankConfig(comm, ranks, id[0], rank, config);
}

ncclResult_t ncclCommSplit(ncclComm_t whole, int color, int key, ncclComm_t *part, ncclConfig_t *config) {
    int mine[2] = {color, key}, ranks = 0, rank = 0;
    int *all = (int *)exchange(whole, mine, sizeof mine);
    if (!all) return ncclRemoteError;
    for (int other = 0; other < whole->ranks; other++) {
        int other_key = all[2 * other + 1];
        if (all[2 * other] != color) continue;
        ranks++;
        rank += other_key < key || (other_key == key && other < whole->rank);
    }
    char id[128];
    snprintf(id, sizeof id, "%.40s-%d-%d", whole->id, whole->splits++, color);
    *part = color < 0 ? NULL : new_comm(id, ranks, rank);
    free(all);
    return ncclSuccess;
}

ncclResult_t ncclCommDestroy(ncclComm_t comm) {
    free(comm);
    return ncclSuccess;
}

ncclResult_t ncclCommAbort(ncclComm_t comm) { return ncclCommDestroy(comm); }
ncclResult_t ncclCommFinalize(ncclComm_t comm) { return ncclSuccess; }

ncclResult_t ncclCommGetAsyncError(ncclComm_t comm, ncclResult_t *error) {
    *error = ncclSuccess;
    return ncclSuccess;
}

ncclResult_t ncclCommCount(const ncclComm_t comm, int *count) {
    *count = comm->ranks;
    return ncclSuccess;
}

ncclResult_t ncclCommUserRank(const ncclComm_t comm, int *rank) {
    *rank = comm->rank;
    return ncclSuccess;
}

const char *ncclGetErrorString(ncclResult_t error) { return "an error of the fake NCCL"; }
const char *ncclGetLastError(ncclComm_t comm) { return ""; }

/* Collectives of a group are done one after the other: all ranks call them in the same order. */
ncclResult_t ncclGroupStart(void) { return ncclSuccess; }
ncclResult_t ncclGroupEnd(void) { return ncclSuccess; }

static void tell(const char *name, const void *from, const void *to, size_t count, ncclDataType_t type) {
    int host = (from && place_of(from, NULL) != ON_DEVICE) || (to && place_of(to, NULL) != ON_DEVICE);
    use_device(name);
    if (host)
        report_with_stack("nccl", "name=%s\tcount=%zu\ttype=%d\thost=1", name, count, type);
    else
        report("nccl", "name=%s\tcount=%zu\ttype=%d\thost=0", name, count, type);
}

#define COMBINE(T)                                                                                                    \
    for (size_t i = 0; i < count; i++) {                                                                              \
        T value = ((const T *)all)[i];                                                                                \
        for (int rank = 1; rank < ranks; rank++) {                                                                    \
            T other = ((const T *)all)[rank * stride + i];                                                            \
            if (op == ncclProd) value *= other;                                                                       \
            else if (op == ncclMax) value = other > value ? other : value;                                            \
            else if (op == ncclMin) value = other < value ? other : value;                                            \
            else value += other;                                                                                      \
        }                                                                                                             \
        ((T *)to)[i] = op == ncclAvg ? value / ranks : value;                                                         \
    }

/* to[i] = all ranks' i-th numbers combined; rank r's begin at r * stride of `all`. */
static void combine(
    void *to, const char *all, size_t count, size_t stride, ncclDataType_t type, ncclRedOp_t op, int ranks) {
    switch (type) {
    case ncclInt8: COMBINE(signed char) break;
    case ncclUint8: COMBINE(unsigned char) break;
    case ncclInt32: COMBINE(int) break;
    case ncclInt64: COMBINE(long) break;
    case ncclFloat32: COMBINE(float) break;
    case ncclFloat64: COMBINE(double) break;
    default: memmove(to, all, count * width(type));
    }
}

ncclResult_t ncclAllReduce(
    const void *from, void *to, size_t count, ncclDataType_t type, ncclRedOp_t op, ncclComm_t comm,
    cudaStream_t stream) {
    tell("all_reduce", from, to, count, type);
    char *all = exchange(comm, from, count * width(type));
    if (!all) return ncclRemoteError;
    combine(to, all, count, count, type, op, comm->ranks);
    free(all);
    return ncclSuccess;
}

ncclResult_t ncclReduce(
    const void *from, void *to, size_t count, ncclDataType_t type, ncclRedOp_t op, int root, ncclComm_t comm,
    cudaStream_t stream) {
    tell("reduce", from, comm->rank == root ? to : NULL, count, type);
    char *all = exchange(comm, from, count * width(type));
    if (!all) return ncclRemoteError;
    if (comm->rank == root) combine(to, all, count, count, type, op, comm->ranks);
    free(all);
    return ncclSuccess;
}

ncclResult_t ncclBroadcast(
    const void *from, void *to, size_t count, ncclDataType_t type, int root, ncclComm_t comm, cudaStream_t stream) {
    tell("broadcast", comm->rank == root ? from : NULL, to, count, type);
    size_t bytes = count * width(type);
    char *all = exchange(comm, comm->rank == root ? from : to, bytes);
    if (!all) return ncclRemoteError;
    memmove(to, all + root * bytes, bytes);
    free(all);
    return ncclSuccess;
}

ncclResult_t ncclBcast(
    void *buffer, size_t count, ncclDataType_t type, int root, ncclComm_t comm, cudaStream_t stream) {
    return ncclBroadcast(buffer, buffer, count, type, root, comm, stream);
}

ncclResult_t ncclAllGather(
    const void *from, void *to, size_t count, ncclDataType_t type, ncclComm_t comm, cudaStream_t stream) {
    tell("all_gather", from, to, count, type);
    char *all = exchange(comm, from, count * width(type));
    if (!all) return ncclRemoteError;
    memmove(to, all, count * width(type) * comm->ranks);
    free(all);
    return ncclSuccess;
}

ncclResult_t ncclReduceScatter(
    const void *from, void *to, size_t count, ncclDataType_t type, ncclRedOp_t op, ncclComm_t comm,
    cudaStream_t stream) {
    tell("reduce_scatter", from, to, count, type);
    size_t stride = count * comm->ranks;
    char *all = exchange(comm, from, stride * width(type));
    if (!all) return ncclRemoteError;
    combine(to, all + comm->rank * count * width(type), count, stride, type, op, comm->ranks);
    free(all);
    return ncclSuccess;
}
