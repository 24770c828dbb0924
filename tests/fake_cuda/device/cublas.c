/* cuBLAS: matrix products are not computed. What gives something back is here, the rest is made by build.py. */
#include "fake.h"
#define __CUDA_FP16_H__ /* these want C++ headers that no wheel has, for functions that are not used here */
#define __CUDA_BF16_H__
#define __CUDA_FP8_H__
typedef struct { unsigned short bits; } __half;
#include <cublasLt.h>
#include <stdlib.h>
#include <string.h>

static void *opaque(void) { return calloc(1, 1024); }

cublasStatus_t cublasCreate_v2(cublasHandle_t *handle) {
    use_device("cublasCreate");
    *handle = opaque();
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasGetMathMode(cublasHandle_t handle, cublasMath_t *mode) {
    *mode = CUBLAS_DEFAULT_MATH;
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasGetPointerMode_v2(cublasHandle_t handle, cublasPointerMode_t *mode) {
    *mode = CUBLAS_POINTER_MODE_HOST;
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasGetStream_v2(cublasHandle_t handle, cudaStream_t *stream) {
    *stream = NULL;
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasGetVersion_v2(cublasHandle_t handle, int *version) {
    *version = CUBLAS_VERSION;
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtCreate(cublasLtHandle_t *handle) {
    *handle = opaque();
    return CUBLAS_STATUS_SUCCESS;
}

/* The descriptors are opened and closed for each product: those that are closed are given back. */
cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t *of, cublasComputeType_t compute, cudaDataType_t scale) {
    *of = opaque();
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulDescDestroy(cublasLtMatmulDesc_t of) {
    free(of);
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatrixLayoutCreate(
    cublasLtMatrixLayout_t *of, cudaDataType type, uint64_t rows, uint64_t columns, int64_t leading) {
    *of = opaque();
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t of) {
    free(of);
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t *of) {
    *of = opaque();
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t of) {
    free(of);
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulAlgoGetHeuristic(
    cublasLtHandle_t handle, cublasLtMatmulDesc_t of, cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
    cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d, cublasLtMatmulPreference_t preference, int asked,
    cublasLtMatmulHeuristicResult_t *found, int *count) {
    memset(found, 0, sizeof *found);
    *count = 1;
    return CUBLAS_STATUS_SUCCESS;
}
