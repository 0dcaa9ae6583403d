/* Variables of each thread, used from an object that does not define all of them. */
extern _Thread_local int shared;
_Thread_local int counter = 40;
_Alignas(64) _Thread_local char aligned[64] = "aligned";
static _Thread_local long zeros[4];
static _Thread_local int *pointer;
static int global = 7;
static _Thread_local int *initial = &global;

int shared_of_other(void);

/* The same in each call, as each begins with the initial values. */
int run(int by) {
    counter += by;
    zeros[3] += by;
    shared += by;
    pointer = &counter;
    return *pointer + (int)zeros[3] + (int)zeros[0] + shared_of_other() + *initial + aligned[2];
}

unsigned long misaligned(void) {
    return (unsigned long)aligned % 64;
}
