/* Every rule of the design is on. A broken variant leaves one out: spin -DNO_F7 gives RULE_F7 the value 0, and the
   guards that read (!RULE_F7 || condition) let through what the rule forbids. [F1] to [F22] and [R] are the numbers of
   docs/internals/rules.md; rules marked [R] there have names of their own, at the place in a model where they are used. */

#ifdef NO_F1
#define RULE_F1 0
#else
#define RULE_F1 1
#endif
#ifdef NO_F2
#define RULE_F2 0
#else
#define RULE_F2 1
#endif
#ifdef NO_F3
#define RULE_F3 0
#else
#define RULE_F3 1
#endif
#ifdef NO_F4
#define RULE_F4 0
#else
#define RULE_F4 1
#endif
#ifdef NO_F5
#define RULE_F5 0
#else
#define RULE_F5 1
#endif
#ifdef NO_F6
#define RULE_F6 0
#else
#define RULE_F6 1
#endif
#ifdef NO_F7
#define RULE_F7 0
#else
#define RULE_F7 1
#endif
#ifdef NO_F8
#define RULE_F8 0
#else
#define RULE_F8 1
#endif
#ifdef NO_F9
#define RULE_F9 0
#else
#define RULE_F9 1
#endif
#ifdef NO_F10
#define RULE_F10 0
#else
#define RULE_F10 1
#endif
#ifdef NO_F11
#define RULE_F11 0
#else
#define RULE_F11 1
#endif
#ifdef NO_F12
#define RULE_F12 0
#else
#define RULE_F12 1
#endif
#ifdef NO_F13
#define RULE_F13 0
#else
#define RULE_F13 1
#endif
#ifdef NO_F14
#define RULE_F14 0
#else
#define RULE_F14 1
#endif
#ifdef NO_F15
#define RULE_F15 0
#else
#define RULE_F15 1
#endif
#ifdef NO_F16
#define RULE_F16 0
#else
#define RULE_F16 1
#endif
#ifdef NO_F17
#define RULE_F17 0
#else
#define RULE_F17 1
#endif
#ifdef NO_F18
#define RULE_F18 0
#else
#define RULE_F18 1
#endif
#ifdef NO_F19
#define RULE_F19 0
#else
#define RULE_F19 1
#endif
#ifdef NO_F20
#define RULE_F20 0
#else
#define RULE_F20 1
#endif
#ifdef NO_F21
#define RULE_F21 0
#else
#define RULE_F21 1
#endif
#ifdef NO_F22
#define RULE_F22 0
#else
#define RULE_F22 1
#endif
