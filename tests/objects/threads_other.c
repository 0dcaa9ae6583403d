/* Defines what threads.c uses. */
_Thread_local int shared = 1000;

int shared_of_other(void) {
    return shared;
}
