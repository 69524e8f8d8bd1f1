// The adaptive 3x3 convolution of DEKR's offset head, forwards and backwards, for all joints and a list of cells.
//
// Memory: maps (images, height, width, joints, C) float32, one vector of C channels per cell and joint;
// shape (cells, joints, 6): the matrix A row by row, then the translation t, of each listed cell;
// weight (joints, 9, C in, C out); taps are numbered row by row. Tap k of a cell is at cell + A R_k + t.
// Corners outside the map count as 0. Built by adaptive_conv.py with C (a power of two) given on the command line.
#include <math.h>
#include <string.h>

typedef float vec __attribute__((vector_size(C * 4), aligned(4), may_alias));

static const float ROW[9] = {-1, -1, -1, 0, 0, 0, 1, 1, 1};
static const float COLUMN[9] = {-1, 0, 1, -1, 0, 1, -1, 0, 1};

// The four corners of a point: offsets into the image's map (-1: outside) and the two fractions.
typedef struct { long at[4]; float fy, fx; } point;

static inline point locate(float y, float x, int height, int width, long cell_step) {
    point p;
    y = fminf(fmaxf(y, -2.0f), height + 1.0f), x = fminf(fmaxf(x, -2.0f), width + 1.0f);
    float top = floorf(y), left = floorf(x);
    int row = (int)top, column = (int)left;
    p.fy = y - top, p.fx = x - left;
    for (int corner = 0; corner < 4; corner++) {
        int r = row + corner / 2, c = column + corner % 2;
        p.at[corner] = r >= 0 && r < height && c >= 0 && c < width ? (r * (long)width + c) * cell_step : -1;
    }
    return p;
}

static inline vec corner_value(const float *map, const point *p, int corner) {
    return p->at[corner] < 0 ? (vec){0} : *(const vec *)(map + p->at[corner]);
}

static inline point tap_point(const float *a, int k, int cell, int height, int width, long cell_step) {
    float y = cell / width + a[0] * ROW[k] + a[1] * COLUMN[k] + a[4];
    float x = cell % width + a[2] * ROW[k] + a[3] * COLUMN[k] + a[5];
    return locate(y, x, height, width, cell_step);
}

// out (cells, joints, C). cells: index within the image; starts (images + 1): where an image's cells begin.
void adaptive_forward(const float *maps, const float *shape, const float *weight, const int *cells, const int *starts,
                      float *out, int images, int joints, int height, int width) {
    const long cell_step = (long)joints * C;
#pragma omp parallel for collapse(2) schedule(dynamic, 1)
    for (int n = 0; n < images; n++)
        for (int j = 0; j < joints; j++) {
            const float *map = maps + n * (long)height * width * cell_step + j * C;
            for (int m = starts[n]; m < starts[n + 1]; m++) {
                const float *a = shape + (m * (long)joints + j) * 6;
                vec sum = {0};
                for (int k = 0; k < 9; k++) {
                    point p = tap_point(a, k, cells[m], height, width, cell_step);
                    vec upper = corner_value(map, &p, 0) * (1 - p.fx) + corner_value(map, &p, 1) * p.fx;
                    vec lower = corner_value(map, &p, 2) * (1 - p.fx) + corner_value(map, &p, 3) * p.fx;
                    vec sample = upper * (1 - p.fy) + lower * p.fy;
                    const float *w = weight + (j * 9L + k) * C * C;
                    for (int i = 0; i < C; i++) sum += sample[i] * *(const vec *)(w + i * C);
                }
                *(vec *)(out + (m * (long)joints + j) * C) = sum;
            }
        }
}

static inline float dot(vec a, vec b) {
    vec product = a * b;
    float sum = 0;
    for (int i = 0; i < C; i++) sum += product[i];
    return sum;
}

// Adds to maps_grad and weight_grad (both zeroed by the caller), sets shape_grad; weight_t is (joints, 9, C out, C in).
void adaptive_backward(const float *maps, const float *shape, const float *weight_t, const int *cells,
                       const int *starts, const float *out_grad, float *maps_grad, float *shape_grad,
                       float *weight_grad, int images, int joints, int height, int width) {
    const long cell_step = (long)joints * C;
#pragma omp parallel for schedule(dynamic, 1)
    for (int j = 0; j < joints; j++) {
        float local[9 * C * C];
        memset(local, 0, sizeof local);
        for (int n = 0; n < images; n++) {
            const long base = n * (long)height * width * cell_step + j * C;
            const float *map = maps + base;
            float *map_grad = maps_grad + base;
            for (int m = starts[n]; m < starts[n + 1]; m++) {
                const long entry = m * (long)joints + j;
                const float *a = shape + entry * 6;
                const vec g = *(const vec *)(out_grad + entry * C);
                float grad[6] = {0};
                for (int k = 0; k < 9; k++) {
                    point p = tap_point(a, k, cells[m], height, width, cell_step);
                    vec v0 = corner_value(map, &p, 0), v1 = corner_value(map, &p, 1);
                    vec v2 = corner_value(map, &p, 2), v3 = corner_value(map, &p, 3);
                    vec upper = v0 * (1 - p.fx) + v1 * p.fx, lower = v2 * (1 - p.fx) + v3 * p.fx;
                    vec sample = upper * (1 - p.fy) + lower * p.fy;
                    const float *w = weight_t + (j * 9L + k) * C * C;
                    vec back = {0};
                    for (int o = 0; o < C; o++) back += g[o] * *(const vec *)(w + o * C);
                    for (int i = 0; i < C; i++) *(vec *)(local + (k * C + i) * C) += sample[i] * g;
                    float dy = dot(back, lower - upper);
                    float dx = dot(back, (v1 - v0) * (1 - p.fy) + (v3 - v2) * p.fy);
                    grad[0] += dy * ROW[k], grad[1] += dy * COLUMN[k], grad[4] += dy;
                    grad[2] += dx * ROW[k], grad[3] += dx * COLUMN[k], grad[5] += dx;
                    const float share[4] = {(1 - p.fy) * (1 - p.fx), (1 - p.fy) * p.fx, p.fy * (1 - p.fx), p.fy * p.fx};
                    for (int corner = 0; corner < 4; corner++)
                        if (p.at[corner] >= 0) *(vec *)(map_grad + p.at[corner]) += back * share[corner];
                }
                memcpy(shape_grad + entry * 6, grad, sizeof grad);
            }
        }
        float *total = weight_grad + j * 9L * C * C;
        for (int i = 0; i < 9 * C * C; i++) total[i] += local[i];
    }
}
