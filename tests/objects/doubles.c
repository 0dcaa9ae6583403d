/* Double arithmetic without a library: the host's own build must give the same bits. */
double horner(double x) {
    static const double c[] = {1.0, -0.5, 1.0 / 3, -0.25, 0.2, -1.0 / 6, 1.0 / 7};
    double sum = 0;
    for (int i = 6; i >= 0; i--) sum = sum * x + c[i];
    return sum * x;
}

double newton_sqrt(double x) {
    double guess = x > 1 ? x / 2 : 1;
    for (int i = 0; i < 60; i++) guess = (guess + x / guess) / 2;
    return guess;
}

float mix(float a, double b, int c, float d) { return a * (float)b + (float)c / d; }

double dot(const double *a, const double *b, unsigned n) {
    double sum = 0;
    for (unsigned i = 0; i < n; i++) sum += a[i] * b[i];
    return sum;
}
