// What the library shows to Python: plain C functions over raw pointers, called through ctypes,
// which lets other Python threads run meanwhile.
#pragma once

#define SHOAL_API extern "C" __attribute__((visibility("default")))
