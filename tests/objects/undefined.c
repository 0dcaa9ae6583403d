/* Asks for what nobody offers. */
int first_missing(int);
extern int second_missing;
int ask(int x) { return first_missing(x) + second_missing; }
