// Lets the extension load with an older glibc than the one that it was compiled with.
//
// libstdc++ counts references without atomic operations while __libc_single_threaded is not 0. glibc has had that
// variable since version 2.32, so code that reads it does not load with an older one. This one is hidden: only the
// extension reads it. It is 0, which is right for any number of threads.
extern "C" {
char __libc_single_threaded = 0;
}
