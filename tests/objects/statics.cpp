/* What C++ does before main and after it: a static object with a constructor and a destructor. */
struct Counter {
    int value;
    explicit Counter(int start) : value(start * 2) {}
    ~Counter() { value = -1; }
};

static Counter counter(21);
static const int twice = counter.value * 2;

extern "C" int value() { return counter.value + twice; }
extern "C" int next() { return ++counter.value; }
