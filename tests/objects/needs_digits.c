/* Its constructor uses a function of another object, whose own constructors must have run. */
int digits(void);

static int seen;

__attribute__((constructor)) static void start(void) { seen = digits(); }

int seen_at_start(void) { return seen; }
int digits_now(void) { return digits(); }
