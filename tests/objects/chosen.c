/* Functions that choose their implementation: one that others may call, and one of this file alone. */
static int slow(int x) { return x + 1; }
static int fast(int x) { return x * 2; }

typedef int Function(int);

/* Calls of code far away, through memory: a resolver may read what is constant. */
static int (*const candidates[])(int) = {slow, fast};

static Function *pick(void) { return candidates[1]; }
static Function *pick_local(void) { return candidates[0]; }

int chosen(int) __attribute__((ifunc("pick")));
static int local(int) __attribute__((ifunc("pick_local")));

static Function *const table[] = {chosen, local};

int direct(int x) { return chosen(x) * 100 + local(x); }
int through_table(int x) { return table[0](x) * 100 + table[1](x); }
int equal(void) {
    Function *volatile mine = chosen, *volatile theirs = table[0];
    return mine == theirs && mine != table[1];
}
