defmodule Barytherium.Tail.Format do
  @moduledoc false
  # How a message is shown: `:pretty` for people, `:json` for programs (one object a line), `:raw` for the
  # bytes of the body.

  alias Barytherium.Frame
  alias Barytherium.Tail.{Body, Hexdump, Json, Xml}
  alias Barytherium.Text

  # Bytes of text, or of a binary, that are shown of a body unless all is.
  @shown_text 4096
  @shown_binary 512

  # Bytes up to which a body is inflated and laid out, in order to show the beginning of it. Otherwise
  # as many as a body may have by default; see the option `max_body` of `Barytherium.Network`.
  @inflated_cut 1024 * 1024
  @inflated_all 100 * 1024 * 1024

  @type style :: %{all: boolean(), colors: boolean()}

  @spec message(:pretty | :json | :raw, Frame.t(), DateTime.t(), style()) :: iodata()
  def message(:raw, frame, _time, _style), do: frame.body

  def message(:json, frame, time, _style) do
    body =
      case Body.inflate(frame.body, @inflated_all) do
        {:inflated, bytes} -> [~s("gzip":true,) | json_body(bytes)]
        _as_it_is -> json_body(frame.body)
      end

    [json_start(frame, time), body, "}\n"]
  end

  def message(:pretty, frame, time, style) do
    limit = if style.all, do: @inflated_all, else: @inflated_cut
    {compressed, bytes} = Body.inflate(frame.body, limit)
    size = size(compressed, byte_size(frame.body), byte_size(bytes))

    title =
      "==> #{frame |> Frame.header("destination", "?") |> Text.line()} <== #{clock(time)}, #{size}"

    {shown, left} = body(bytes, compressed != :partial, style)

    headers =
      for {name, value} <- frame.headers, name != "destination", do: header(name, value, style)

    more = more(left, compressed, style)
    [color(title, :cyan, style), ?\n, headers, ?\n, shown, more, ?\n]
  end

  @doc "A frame on one line, for `--trace`."
  @spec trace(:sent | :received, Frame.t()) :: String.t()
  def trace(direction, %Frame{command: command, headers: headers, body: body}) do
    mark = if direction == :sent, do: ">", else: "<"
    # They may be anything, and need not be text.
    headers = for {name, value} <- headers, do: [" ", name, ":", value]
    body = if body == "", do: "", else: " (#{byte_size(body)} bytes)"
    command = command |> to_string() |> String.upcase()
    Text.line(IO.iodata_to_binary([mark, " ", command, headers, body]))
  end

  @doc "A message for `--save`: as it came, with the body in Base64."
  @spec saved(Frame.t(), DateTime.t()) :: iolist()
  def saved(frame, time), do: [json_start(frame, time), base64(frame.body), "}\n"]

  defp json_start(frame, time) do
    headers = frame.headers |> Enum.uniq_by(&elem(&1, 0)) |> Enum.map(&member/1)
    time = [~s("time":), Json.string(DateTime.to_iso8601(time))]
    [?{, time, ~s(,"headers":{), Enum.intersperse(headers, ?,), "},"]
  end

  defp member({name, value}), do: [Json.string(name), ?:, Json.string(value)]

  defp json_body(bytes) do
    if Body.kind(bytes, true) == :text, do: [~s("body":), Json.string(bytes)], else: base64(bytes)
  end

  defp base64(bytes), do: [~s("body_base64":"), Base.encode64(bytes), ?"]

  defp header(name, value, style),
    do: [color(Text.line(name), :faint, style), ": ", Text.line(value), ?\n]

  defp clock(time),
    do: time |> DateTime.truncate(:millisecond) |> DateTime.to_time() |> to_string()

  defp size(:plain, size, _size), do: "#{size} bytes"
  defp size(:broken, size, _size), do: "#{size} bytes (broken gzip)"
  defp size(:inflated, size, all), do: "#{size} bytes (gzip of #{all})"
  defp size(:partial, size, some), do: "#{size} bytes (gzip of more than #{some})"

  # What is shown, and the number of bytes that are left out.
  defp body(<<>>, _complete?, _style), do: {[], 0}

  defp body(bytes, complete?, style) do
    case Body.kind(bytes, complete?) do
      :text ->
        {text, left} = bytes |> lay_out(complete?, style) |> cut(@shown_text, style)
        {[text |> whole_characters() |> Text.block() |> String.trim_trailing("\n"), ?\n], left}

      :binary ->
        {bytes, left} = cut(bytes, @shown_binary, style)
        {Hexdump.dump(bytes), left}
    end
  end

  # A large body would be laid out for the sake of its beginning.
  defp lay_out(<<first, _rest::binary>> = text, true, style)
       when first in ~c"{[ \t\r\n" and (byte_size(text) <= @inflated_cut or style.all) do
    case Json.indent(text) do
      {:ok, indented} -> IO.iodata_to_binary(indented)
      :error -> text
    end
  end

  defp lay_out("<" <> _rest = text, true, style)
       when byte_size(text) <= @inflated_cut or style.all do
    case Xml.indent(text) do
      {:ok, indented} -> IO.iodata_to_binary(indented)
      :error -> text
    end
  end

  defp lay_out(text, _complete?, _style), do: text

  defp cut(bytes, limit, %{all: false}) when byte_size(bytes) > limit,
    do: {binary_part(bytes, 0, limit), byte_size(bytes) - limit}

  defp cut(bytes, _limit, _style), do: {bytes, 0}

  # A character that was cut through is left out.
  defp whole_characters(text) do
    case :unicode.characters_to_binary(text) do
      {:incomplete, whole, _rest} -> whole
      whole -> whole
    end
  end

  defp more(0, _compressed, _style), do: []

  defp more(left, compressed, style) do
    than = if compressed == :partial, do: "more than ", else: ""
    [color("... #{than}#{left} more bytes (--all shows them)", :yellow, style), ?\n]
  end

  @doc "Text in a colour, if there are colours."
  @spec color(iodata(), IO.ANSI.ansicode(), style()) :: iodata()
  def color(text, _color, %{colors: false}), do: text
  def color(text, color, %{colors: true}), do: IO.ANSI.format([color, text], true)
end
