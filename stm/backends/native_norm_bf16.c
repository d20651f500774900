/* `stm_add_norm` between matrix products in bfloat16, as `stm_add_norm_bf16`. */
#define BF16
#define stm_add_norm stm_add_norm_bf16
#include "native_norm.c"
