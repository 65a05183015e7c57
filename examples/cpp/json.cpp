#include "json.hpp"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <stdexcept>

class JsonReader {
 public:
  explicit JsonReader(std::string_view text) : text_(text) {}

  Json document() {
    Json json = value(0);
    skip_space();
    if (at_ != text_.size()) fail("the end");
    return json;
  }

 private:
  static constexpr int DEEPEST = 64;

  [[noreturn]] void fail(const char* expected) const {
    throw std::invalid_argument("no JSON: " + std::string(expected) + " expected at byte " + std::to_string(at_));
  }
  void skip_space() {
    while (at_ < text_.size() && std::string_view(" \t\r\n").find(text_[at_]) != std::string_view::npos) ++at_;
  }
  bool take(std::string_view token) {
    skip_space();
    if (text_.substr(at_, token.size()) != token) return false;
    at_ += token.size();
    return true;
  }

  Json value(int depth) {
    Json json;
    if (depth > DEEPEST) fail("something less nested");
    if (take("{")) {
      json.kind_ = Json::Kind::object;
      sequence("}", [&] {
        if (!take("\"")) fail("a key");
        std::string key = string();
        if (!take(":")) fail("a colon");
        json.members_.emplace_back(std::move(key), value(depth + 1));
      });
    } else if (take("[")) {
      json.kind_ = Json::Kind::list;
      sequence("]", [&] { json.list_.push_back(value(depth + 1)); });
    } else if (take("\"")) {
      json.kind_ = Json::Kind::text;
      json.text_ = string();
    } else if (take("true") || take("false")) {
      json.kind_ = Json::Kind::boolean;
      json.number_ = text_[at_ - 2] == 'u';  // tr-u-e, fal-s-e
    } else if (!take("null")) {
      json.kind_ = Json::Kind::number;
      json.number_ = number();
    }
    return json;
  }

  template <class Item>
  void sequence(std::string_view end, const Item& item) {
    if (take(end)) return;
    do item();
    while (take(","));
    if (!take(end)) fail("a comma or the closing bracket");
  }

  double number() {
    const size_t end = std::min(text_.find_first_not_of("+-.0123456789eE", at_), text_.size());
    const std::string digits(text_.substr(at_, end - at_));
    char* stop = nullptr;
    const double found = std::strtod(digits.c_str(), &stop);
    if (digits.empty() || *stop != '\0') fail("a value");
    at_ = end;
    return found;
  }

  // Behind the opening quotation mark.
  std::string string() {
    static constexpr std::string_view letters = "\"\\/bfnrt", meanings = "\"\\/\b\f\n\r\t";
    std::string found;
    while (at_ < text_.size() && text_[at_] != '"') {
      const char c = text_[at_++];
      if (c != '\\') {
        found += c;
      } else if (const size_t i = letters.find(at_ < text_.size() ? text_[at_] : ' '); i != std::string_view::npos) {
        found += meanings[i];
        ++at_;
      } else if (take("u")) {
        append_utf8(found, code_point());
      } else {
        fail("an escaped character");
      }
    }
    if (at_ == text_.size()) fail("a closing quotation mark");
    ++at_;
    return found;
  }

  unsigned long code_unit() {
    const std::string digits(text_.substr(std::min(at_, text_.size()), 4));
    if (digits.size() != 4 || digits.find_first_not_of("0123456789abcdefABCDEF") != std::string::npos) fail("four hex digits");
    at_ += 4;
    return std::strtoul(digits.c_str(), nullptr, 16);
  }
  unsigned long code_point() {
    const unsigned long first = code_unit();
    if (first < 0xD800 || first > 0xDFFF) return first;
    if (first > 0xDBFF || text_.substr(at_, 2) != "\\u") fail("the second half of a surrogate pair");
    at_ += 2;
    const unsigned long second = code_unit();
    if (second < 0xDC00 || second > 0xDFFF) fail("the second half of a surrogate pair");
    return 0x10000 + ((first - 0xD800) << 10) + (second - 0xDC00);
  }
  static void append_utf8(std::string& out, unsigned long point) {
    const int more = point < 0x80 ? 0 : point < 0x800 ? 1 : point < 0x10000 ? 2 : 3;
    static constexpr unsigned long lead[] = {0, 0xC0, 0xE0, 0xF0};
    out += static_cast<char>(lead[more] | point >> (6 * more));
    for (int i = more - 1; i >= 0; --i) out += static_cast<char>(0x80 | (point >> (6 * i) & 0x3F));
  }

  std::string_view text_;
  size_t at_ = 0;
};

Json Json::parse(std::string_view text) { return JsonReader(text).document(); }

const Json& Json::expect(Kind kind, const char* name) const {
  if (kind_ != kind) throw std::invalid_argument(std::string("found something else where ") + name + " should be");
  return *this;
}

bool Json::boolean() const { return expect(Kind::boolean, "true or false").number_ != 0; }
double Json::number() const { return expect(Kind::number, "a number").number_; }
const std::string& Json::text() const { return expect(Kind::text, "a string").text_; }
const std::vector<Json>& Json::list() const { return expect(Kind::list, "a list").list_; }

const Json& Json::operator[](std::string_view key) const {
  for (const auto& [name, member] : expect(Kind::object, "an object").members_)
    if (name == key) return member;
  throw std::invalid_argument("the field \"" + std::string(key) + "\" is missing");
}

std::string json_string(std::string_view text) {
  std::string found = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') {
      (found += '\\') += c;
    } else if (static_cast<unsigned char>(c) < 0x20) {
      char escaped[8];
      std::snprintf(escaped, sizeof escaped, "\\u%04x", static_cast<unsigned>(c));
      found += escaped;
    } else {
      found += c;
    }
  }
  return found += '"';
}
