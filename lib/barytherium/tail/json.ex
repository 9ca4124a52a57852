defmodule Barytherium.Tail.Json do
  @moduledoc false
  # Lays JSON text out over several lines. Strings and numbers stay exactly as they are: they are not
  # decoded. OTP has a JSON library only since release 27.
  #
  # The stack holds the kind of each container that is open, so nothing but memory limits a text's length;
  # see @deepest for its depth.

  alias Barytherium.Text

  # A line is indented by its depth, so the result could grow with the square of a text that only nests.
  @deepest 100

  @space [?\s, ?\t, ?\n, ?\r]

  @doc "Returns `:error` for a text that is not JSON, and for one that nests too deeply."
  @spec indent(binary()) :: {:ok, iodata()} | :error
  def indent(text), do: value(text, [], [])

  # Expects a value.

  defp value(<<char, rest::binary>>, stack, out) when char in @space, do: value(rest, stack, out)
  defp value("{" <> rest, stack, out), do: open(rest, :object, stack, out)
  defp value("[" <> rest, stack, out), do: open(rest, :array, stack, out)

  defp value(text, stack, out) do
    with {:ok, token, rest} <- scalar(text), do: after_value(rest, stack, [out, token])
  end

  defp open(_text, _kind, stack, _out) when length(stack) >= @deepest, do: :error

  defp open(text, kind, stack, out) do
    {opening, closing} = brackets(kind)

    case skip_space(text) do
      <<^closing, rest::binary>> -> after_value(rest, stack, [out, opening, closing])
      rest -> item(rest, [kind | stack], [out, opening])
    end
  end

  # Expects an element of an array, or a key and a value.

  defp item(text, [:array | _] = stack, out), do: value(text, stack, [out, line(stack)])

  defp item(text, [:object | _] = stack, out) do
    with {:ok, key, rest} <- text |> skip_space() |> key(),
         ":" <> rest <- skip_space(rest) do
      value(rest, stack, [out, line(stack), key, ": "])
    else
      _no_key_or_colon -> :error
    end
  end

  defp key(<<?", _rest::binary>> = text), do: scalar(text)
  defp key(_other), do: :error

  # Expects a comma, a closing bracket, or the end.

  defp after_value(<<char, rest::binary>>, stack, out) when char in @space,
    do: after_value(rest, stack, out)

  defp after_value(<<>>, [], out), do: {:ok, out}
  defp after_value("," <> rest, [_ | _] = stack, out), do: item(rest, stack, [out, ","])

  defp after_value(<<char, rest::binary>>, [kind | stack], out) do
    case brackets(kind) do
      {_opening, ^char} -> after_value(rest, stack, [out, line(stack), char])
      _other -> :error
    end
  end

  defp after_value(_rest, _stack, _out), do: :error

  defp brackets(:object), do: {?{, ?}}
  defp brackets(:array), do: {?[, ?]}

  defp line(stack), do: [?\n | List.duplicate("  ", length(stack))]

  defp skip_space(<<char, rest::binary>>) when char in @space, do: skip_space(rest)
  defp skip_space(text), do: text

  # Tokens

  defp scalar(<<?", rest::binary>> = text), do: string(rest, text, 1)
  defp scalar("true" <> rest), do: {:ok, "true", rest}
  defp scalar("false" <> rest), do: {:ok, "false", rest}
  defp scalar("null" <> rest), do: {:ok, "null", rest}

  defp scalar(text) do
    case Regex.run(~r/\A-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?/, text) do
      [number] -> {:ok, number, after_bytes(text, byte_size(number))}
      nil -> :error
    end
  end

  # `text` begins at the opening quote, and `length` bytes of it have been read.
  defp string(<<?", rest::binary>>, text, length),
    do: {:ok, binary_part(text, 0, length + 1), rest}

  defp string(<<?\\, char, rest::binary>>, text, length) when char in ~c(\"\\/bfnrt),
    do: string(rest, text, length + 2)

  defp string(<<?\\, ?u, digits::binary-size(4), rest::binary>>, text, length) do
    if digits =~ ~r/\A[0-9a-fA-F]{4}\z/, do: string(rest, text, length + 6), else: :error
  end

  defp string(<<char, rest::binary>>, text, length) when char >= 0x20 and char != ?\\,
    do: string(rest, text, length + 1)

  defp string(_rest, _text, _length), do: :error

  defp after_bytes(text, count), do: binary_part(text, count, byte_size(text) - count)

  @doc "Encodes text as a JSON string that is harmless for a terminal. Bytes that are not UTF-8 count as Latin-1."
  @spec string(binary()) :: iolist()
  def string(bytes) do
    text = if String.valid?(bytes), do: bytes, else: :unicode.characters_to_binary(bytes, :latin1)
    [?", for(<<char::utf8 <- text>>, into: "", do: encoded(char)), ?"]
  end

  defp encoded(?"), do: "\\\""
  defp encoded(?\\), do: "\\\\"
  defp encoded(?\n), do: "\\n"
  defp encoded(?\r), do: "\\r"
  defp encoded(?\t), do: "\\t"

  # What is unsafe has at most four digits.
  defp encoded(char) do
    if Text.unsafe?(char), do: "\\u" <> Text.hex(char, 4), else: <<char::utf8>>
  end
end
