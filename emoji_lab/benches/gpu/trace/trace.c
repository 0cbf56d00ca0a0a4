// Writes when each kernel of a process began and ended on the GPU, also those of a CUDA graph, which a timer around them
// cannot see: NVIDIA's CUPTI (pip's nvidia-cuda-cupti, or the toolkit's extras), loaded by the driver. A step of 400
// kernels takes 1 to 3 % longer with it.
//
//     gcc -shared -fPIC -O1 -o libtrace.so trace.c -I CUPTI/include -I CUDA/include -L CUPTI/lib -l:libcupti.so.13
//     TRACE_OUT=trace.txt CUDA_INJECTION64_PATH=$PWD/libtrace.so PROGRAM …
//     python3 summarize.py trace.txt
//
// A line a kernel: begin and end in ns, stream, blocks, name.
#include <cupti.h>
#include <stdio.h>
#include <stdlib.h>

static FILE *out;

static void need_buffer(uint8_t **buffer, size_t *size, size_t *most_records) {
    *size = 8 << 20, *buffer = aligned_alloc(8, *size), *most_records = 0;
}

static void buffer_is_full(CUcontext context, uint32_t stream, uint8_t *buffer, size_t size, size_t valid) {
    (void)context, (void)stream, (void)size;
    CUpti_Activity *record = NULL;
    while (cuptiActivityGetNextRecord(buffer, valid, &record) == CUPTI_SUCCESS) {
        if (record->kind != CUPTI_ACTIVITY_KIND_CONCURRENT_KERNEL) continue;
        const CUpti_ActivityKernel10 *k = (const void *)record;
        fprintf(out, "%llu %llu %u %d %s\n", (unsigned long long)k->start, (unsigned long long)k->end, k->streamId,
                k->gridX * k->gridY * k->gridZ, k->name);
    }
    free(buffer);
}

static void finish(void) {
    cuptiActivityFlushAll(1);
    fclose(out);
}

// What the driver calls when it is initialised.
int InitializeInjection(void) {
    const char *path = getenv("TRACE_OUT");
    out = fopen(path != NULL ? path : "trace.txt", "w");
    if (out == NULL) return perror("TRACE_OUT"), 0;
    cuptiActivityRegisterCallbacks(need_buffer, buffer_is_full);
    const CUptiResult result = cuptiActivityEnable(CUPTI_ACTIVITY_KIND_CONCURRENT_KERNEL);
    if (result != CUPTI_SUCCESS) return fprintf(stderr, "CUPTI does not trace kernels: error %d\n", result), 0;
    atexit(finish);
    return 1;
}
