/* `stm_conv` between matrix products in bfloat16, as `stm_conv_bf16`. */
#define BF16
#define stm_conv stm_conv_bf16
#include "native_conv.c"
