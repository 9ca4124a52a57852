defmodule Barytherium.TextTest do
  use ExUnit.Case, async: true

  alias Barytherium.Text

  test "control characters are shown as escapes" do
    assert Text.line("a\e[2Jb\0\x7F") == "a\\x1b[2Jb\\x00\\x7f"
    assert Text.line("a\tb\r\nc") == "a\\tb\\r\\nc"
    assert Text.block("a\tb\r\nc\rd") == "a\tb\nc\\rd"
    # C1, the change of direction, and bytes that are not UTF-8.
    assert Text.line("\u009B2J \u202E \u2066 \uFEFF") ==
             "\\u{009b}2J \\u{202e} \\u{2066} \\u{feff}"

    assert Text.line(<<?a, 0x9B, 0xFF>>) == "a\\x9b\\xff"
  end

  test "no byte and no pair of bytes comes out as a control character" do
    for first <- 0..255, second <- 0..255, text = Text.line(<<first, second>>) do
      assert String.valid?(text)
      refute Enum.any?(String.to_charlist(text), &Text.unsafe?/1)
    end
  end

  test "other text stays as it is" do
    text = "Grüße, 世界 🚂\n"
    assert Text.block(text) == text
  end
end
