// As much of JSON as the metadata of an explain graph and the answers of the service need.
#pragma once

#include <string>
#include <string_view>
#include <utility>
#include <vector>

class Json {
 public:
  enum class Kind { null, boolean, number, text, list, object };

  // Throws std::invalid_argument: what is wrong, and at which byte.
  static Json parse(std::string_view text);

  Kind kind() const { return kind_; }
  bool null() const { return kind_ == Kind::null; }

  // What it is, or std::invalid_argument where it is something else.
  bool boolean() const;
  double number() const;
  const std::string& text() const;
  const std::vector<Json>& list() const;
  const Json& operator[](std::string_view key) const;

  bool empty() const { return list_.empty() && members_.empty(); }

 private:
  friend class JsonReader;
  const Json& expect(Kind kind, const char* name) const;

  Kind kind_ = Kind::null;
  double number_ = 0;  // 0 or 1 for a boolean
  std::string text_;
  std::vector<Json> list_;
  std::vector<std::pair<std::string, Json>> members_;
};

// In quotation marks, with control characters escaped; UTF-8 passes as it is.
std::string json_string(std::string_view text);
