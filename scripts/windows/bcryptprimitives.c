/* What Debian's wine lacks of Windows 10, for Rust programs that are tested under it: ProcessPrng, by the function that
 * served for it before (RtlGenRandom, exported as SystemFunction036). Never shipped. */
#include <stdint.h>
#include <windows.h>

BOOLEAN NTAPI SystemFunction036(PVOID buffer, ULONG length);

__declspec(dllexport) BOOL WINAPI ProcessPrng(uint8_t *buffer, SIZE_T length) {
    while (length > 0) {
        ULONG part = length > 0x10000000 ? 0x10000000 : (ULONG)length;
        if (!SystemFunction036(buffer, part)) return FALSE;
        buffer += part;
        length -= part;
    }
    return TRUE;
}
