// A test is a function, `require` ends it.  Programs take the beginnings of names: of tests to run (none: all), or, after a
// minus, not to run.
#pragma once
#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <exception>
#include <stdexcept>
#include <string>
#include <vector>

#include "pycam.h"

struct Test {
  const char* name;
  void (*run)();
  static std::vector<Test>& all() {
    static std::vector<Test> tests;
    return tests;
  }
  Test(const char* test_name, void (*function)()) : name(test_name), run(function) { all().push_back(*this); }
};

#define TEST(name)                     \
  static void name();                  \
  static const Test name##_test(#name, name); \
  static void name()

__attribute__((format(printf, 2, 3))) inline void require(bool holds, const char* format, ...) {
  if (holds) return;
  char text[1024];
  va_list values;
  va_start(values, format);
  std::vsnprintf(text, sizeof text, format, values);
  va_end(values);
  throw std::runtime_error(text);
}

inline bool selected(const char* name, int count, char** beginnings) {
  const auto begins = [name](const char* text) { return std::strncmp(name, text, std::strlen(text)) == 0; };
  bool some = false, this_one = false;
  for (int i = 1; i < count; ++i) {
    if (beginnings[i][0] == '-' && begins(beginnings[i] + 1)) return false;
    some |= beginnings[i][0] != '-';
    this_one |= begins(beginnings[i]);
  }
  return this_one || !some;
}

inline int run_tests(int count, char** beginnings) {
  int passed = 0, failed = 0;
  for (const Test& test : Test::all()) {
    if (!selected(test.name, count, beginnings)) continue;
    try {
      test.run();
      ++passed;
    } catch (const std::exception& error) {
      std::printf("FAILED %s: %s\n", test.name, error.what());
      ++failed;
    }
  }
  pycam_release();  // leak checkers know no sleeping threads
  std::printf("%d passed, %d failed\n", passed, failed);
  return passed > 0 && failed == 0 ? 0 : 1;
}
