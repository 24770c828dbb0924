/* The record of what was asked of the device.
 *
 * Python is not called from here: an event may come from a thread without Python's lock, or inside a lock of torch's
 * allocator, for which a thread that holds Python's lock may wait. The stack is written by Python's own faulthandler,
 * which needs no lock: it is registered for a signal, and the thread sends that signal to itself. */
#include "fake.h"
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

static pthread_mutex_t one_at_a_time = PTHREAD_MUTEX_INITIALIZER;
static int file = -1;
static int stack_signal = 0; /* 0: nobody writes stacks */

static void forget_file(void) { /* in a forked child, which writes its own */
    file = -1;
    stack_signal = 0;
    pthread_mutex_init(&one_at_a_time, NULL);
}

static int open_file(void) {
    static int known = 0;
    const char *path = getenv("FAKE_CUDA_LOG");
    if (file < 0 && path) {
        char mine[4096];
        snprintf(mine, sizeof mine, "%s.%d", path, (int)getpid());
        file = open(mine, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
        if (!known) pthread_atfork(NULL, NULL, forget_file);
        known = 1;
    }
    return file;
}

static void write_event(const char *kind, const char *format, va_list values, int with_stack) {
    char line[2048];
    int used = snprintf(line, sizeof line, "@%s\tthread=%ld\t", kind, (long)syscall(SYS_gettid));
    used += vsnprintf(line + used, sizeof line - used - 1, format, values);
    if (used > (int)sizeof line - 2) used = sizeof line - 2;
    line[used++] = '\n';
    pthread_mutex_lock(&one_at_a_time);
    if (open_file() >= 0 && write(file, line, used) == used && with_stack && stack_signal) raise(stack_signal);
    pthread_mutex_unlock(&one_at_a_time);
}

void report(const char *kind, const char *format, ...) {
    va_list values;
    va_start(values, format);
    write_event(kind, format, values, 0);
    va_end(values);
}

void report_with_stack(const char *kind, const char *format, ...) {
    va_list values;
    va_start(values, format);
    write_event(kind, format, values, 1);
    va_end(values);
}

int unsupported(const char *function, int code) {
    report_with_stack("unsupported", "name=%s", function);
    fprintf(stderr, "fake CUDA device: %s is not supported\n", function);
    return code;
}

/* Called by Python (site/sitecustomize.py, marks.py). */

/* The file's descriptor, for faulthandler; -1 where nothing is recorded. */
int fake_cuda_file(void) { return open_file(); }

/* From now on stacks are written by the handler of this signal. */
void fake_cuda_stacks_by(int signal_number) { stack_signal = signal_number; }

/* A line between events: which kernels were launched since the last one, what each device holds, and a text. */
void fake_cuda_mark(const char *text) {
    report_kernels();
    for (int device = 0; device < device_count(); device++)
        if (has_context(device)) report("memory", "device=%d\tbytes=%zu", device, bytes_on(device));
    report("mark", "text=%s", text);
}

__attribute__((destructor)) static void last_mark(void) {
    if (file >= 0) fake_cuda_mark("end of process");
}
