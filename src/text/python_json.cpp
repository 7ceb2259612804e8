#include "text/python_json.h"

#include <boost/json/array.hpp>
#include <boost/json/object.hpp>

namespace plait {
namespace {

void write_string(std::string_view text, std::string& out) {
  out += '"';
  for (const char c : text) {
    switch (c) {
      case '"':
        out += "\\\"";
        break;
      case '\\':
        out += "\\\\";
        break;
      case '\n':
        out += "\\n";
        break;
      case '\r':
        out += "\\r";
        break;
      case '\t':
        out += "\\t";
        break;
      case '\b':
        out += "\\b";
        break;
      case '\f':
        out += "\\f";
        break;
      default:
        if (static_cast<unsigned char>(c) < 0x20) {
          out += fmt::format("\\u{:04x}", static_cast<unsigned>(c));
        } else {
          out += c;
        }
    }
  }
  out += '"';
}

// Python's repr: the shortest digits that read back as the same number, and always a point or an exponent.
std::string write_double(double number) {
  std::string text = fmt::format("{}", number);
  if (text.find_first_of(".en") == std::string::npos) text += ".0";
  return text;
}

class Writer {
 public:
  explicit Writer(const JsonLayout& layout) : layout_(layout) {}

  void write(const boost::json::value& value, int level) {
    if (const auto* text = value.if_string()) {
      write_string({text->data(), text->size()}, out);
    } else if (const auto* number = value.if_double()) {
      out += write_double(*number);
    } else if (const auto* array = value.if_array()) {
      write_items('[', *array, ']', level, [&](const boost::json::value& item) { write(item, level + 1); });
    } else if (const auto* object = value.if_object()) {
      write_items('{', *object, '}', level, [&](const boost::json::key_value_pair& item) {
        write_string({item.key().data(), item.key().size()}, out);
        out += layout_.key_separator;
        write(item.value(), level + 1);
      });
    } else {
      out += scalar(value);
    }
  }

  std::string out;

 private:
  static std::string scalar(const boost::json::value& value) {
    if (value.is_bool()) return value.get_bool() ? "true" : "false";
    if (value.is_int64()) return std::to_string(value.get_int64());
    if (value.is_uint64()) return std::to_string(value.get_uint64());
    return "null";
  }

  void new_line(int level) {
    if (layout_.indent > 0) out.append("\n").append(static_cast<size_t>(level) * layout_.indent, ' ');
  }

  template <typename Items, typename WriteItem>
  void write_items(char open, const Items& items, char close, int level, WriteItem write_item) {
    out += open;
    bool first = true;
    for (const auto& item : items) {
      if (!std::exchange(first, false)) out += layout_.item_separator;
      new_line(level + 1);
      write_item(item);
    }
    if (!first) new_line(level);
    out += close;
  }

  const JsonLayout& layout_;
};

}  // namespace

std::string python_json(const boost::json::value& value, const JsonLayout& layout) {
  Writer writer(layout);
  writer.write(value, 0);
  return std::move(writer.out);
}

}  // namespace plait
