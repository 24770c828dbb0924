/* A CUDA device that computes nothing. Memory is real, copies are done, kernels are counted and left out; what matters
 * to whoever waits for a GPU is reported. This header is what the files of the device share. */
#pragma once
#define _GNU_SOURCE
#include <cuda_runtime_api.h>
#include <stddef.h>

#define MAX_DEVICES 16

/* report.c: one line for each event in the file $FAKE_CUDA_LOG.<pid>: kind, then name=value pairs, tab-separated, then,
 * for those that have one, the Python stack of the thread. Without that variable nothing is written. */
void report(const char *kind, const char *format, ...) __attribute__((format(printf, 2, 3)));
void report_with_stack(const char *kind, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* A function that the device does not have was called: says so and returns `code`, the library's word for it. */
int unsupported(const char *function, int code);

/* device.c */
int device_count(void);
int capability(void);          /* 70, 90 */
size_t device_bytes(void);     /* memory of each device */
int current_device(void);      /* of this thread */
int has_context(int device);
void use_device(const char *function); /* the thread's device is used: its context is opened by the first who does */

/* memory.c */
enum place { PAGEABLE, PINNED, ON_DEVICE };
enum place place_of(const void *address, int *device);
size_t bytes_on(int device);   /* what cudaMalloc has given and not taken back */

/* kernels.c */
struct kernel {
    const void *host;          /* the address by which the program knows it */
    const char *name;
    long launches;             /* since the last mark */
    struct kernel *next, *all;
};
struct kernel *new_kernel(const void *host, const char *name);
void count_launch(struct kernel *kernel);
void report_kernels(void);
