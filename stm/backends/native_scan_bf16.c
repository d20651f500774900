/* `stm_scan_coarse` between matrix products in bfloat16, as `stm_scan_bf16`. */
#define BF16
#define COARSE
#define scan_forward scan_forward_bf16
#define stm_scan stm_scan_bf16
#include "native_scan.c"
