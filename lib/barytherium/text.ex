defmodule Barytherium.Text do
  @moduledoc false
  # Makes text from a peer harmless for a terminal or a log. Control characters could move the cursor, change the
  # window's title or make text look like something else, so they are shown as escapes.

  @doc "For one line: line ends and tabs are escaped too."
  @spec line(binary()) :: binary()
  def line(bytes), do: escape(bytes, [], <<>>)

  @doc "For text of several lines."
  @spec block(binary()) :: binary()
  def block(bytes), do: bytes |> String.replace("\r\n", "\n") |> escape([?\n, ?\t], <<>>)

  @doc "What has ended a user's function, and nothing that it was raised with: that may be a password."
  @spec failure(:error | :exit | :throw, term()) :: String.t()
  def failure(_kind, exception) when is_exception(exception), do: inspect(exception.__struct__)
  def failure(_kind, reason) when is_atom(reason), do: inspect(reason)
  def failure(kind, _reason), do: Atom.to_string(kind)

  @doc "Whether a character may not reach a terminal as it is."
  @spec unsafe?(char()) :: boolean()
  # C0 and DEL.
  def unsafe?(char) when char < 0x20 or char == 0x7F, do: true
  # C1: 8-bit forms of escape sequences.
  def unsafe?(char) when char in 0x80..0x9F, do: true
  # Line and paragraph separators, and what changes the direction of the text.
  def unsafe?(char) when char in 0x2028..0x202E or char in 0x2066..0x2069, do: true
  def unsafe?(char) when char in [0x061C, 0x200E, 0x200F, 0xFEFF], do: true
  def unsafe?(_char), do: false

  defp escape(<<char::utf8, rest::binary>>, kept, done) do
    if unsafe?(char) and char not in kept do
      escape(rest, kept, <<done::binary, escaped(char)::binary>>)
    else
      escape(rest, kept, <<done::binary, char::utf8>>)
    end
  end

  defp escape(<<byte, rest::binary>>, kept, done),
    do: escape(rest, kept, <<done::binary, "\\x", hex(byte, 2)::binary>>)

  defp escape(<<>>, _kept, done), do: done

  defp escaped(?\n), do: "\\n"
  defp escaped(?\r), do: "\\r"
  defp escaped(?\t), do: "\\t"
  defp escaped(char) when char < 0x80, do: "\\x" <> hex(char, 2)
  defp escaped(char), do: "\\u{" <> hex(char, 4) <> "}"

  @doc "A number in hexadecimal digits, with leading zeros."
  @spec hex(non_neg_integer(), pos_integer()) :: binary()
  def hex(number, digits),
    do: number |> Integer.to_string(16) |> String.downcase() |> String.pad_leading(digits, "0")
end
