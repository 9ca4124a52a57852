defmodule Barytherium.Frame.Outgoing do
  @moduledoc false
  # Frames that are to be written. `prepare/3` runs in the process that writes a frame, so that it
  # raises there for a mistake. `encode/3` runs in a process that knows the negotiated version.

  alias Barytherium.{Frame, Native}

  @commands ~w(stomp connect disconnect ack nack begin commit abort send subscribe unsubscribe
               connected error message receipt)a

  # Memory that a header and a frame take up while they wait, in addition to their bytes. Encoding
  # them takes about as long as copying that many bytes.
  @header_cost 96
  @frame_cost 128
  # Encoding this many bytes takes about 0.1 ms. More is encoded on a dirty scheduler.
  @large 128 * 1024

  @doc """
  Converts headers and body of a frame to binaries. Returns them, and the frame's cost in bytes (see
  `encode/3`). Raises `ArgumentError` for a frame that no version can write.
  """
  @spec prepare(term(), term(), term()) ::
          {Frame.frame_headers(), Frame.frame_body(), pos_integer()}
  def prepare(command, headers, body) do
    command in @commands || raise ArgumentError, unknown_command(command)
    headers = headers |> headers(command) |> without_lengths()
    body = body(body, command)
    check_length(List.keyfind(headers, "content-length", 0), body, command)
    check_line_ends(headers, command)
    {headers, body, cost(headers, @frame_cost + byte_size(body))}
  end

  @doc "Encodes prepared frames. `cost` is the sum of their costs."
  @spec encode([Frame.t()], non_neg_integer(), Frame.dialect(), Native.framing()) ::
          Native.encoded()
  def encode(frames, cost, dialect, framing \\ :stream)

  def encode(frames, cost, dialect, framing) when cost > @large,
    do: Native.encode_large(frames, dialect, framing)

  def encode(frames, _cost, dialect, framing), do: Native.encode(frames, dialect, framing)

  @doc "A message about a frame that could not be encoded. It shows no header values."
  @spec refusal(Frame.t(), atom(), non_neg_integer()) :: String.t()
  def refusal(%{command: command, headers: headers}, reason, header) do
    {name, _value} = Enum.at(headers, header)
    "cannot write this #{command}: #{text(reason)}: #{inspect(name)}"
  end

  defp text(:empty_header_name), do: "a header has no name"
  defp text(:unescapable), do: "a header has a character that this version cannot escape"

  defp unknown_command(command) when is_binary(command) do
    case Enum.find(@commands, &(to_string(&1) == String.downcase(command))) do
      nil -> "#{inspect(command)} is not a STOMP command"
      atom -> "commands are atoms: write #{inspect(atom)} instead of #{inspect(command)}"
    end
  end

  defp unknown_command(command), do: "#{inspect(command)} is not a STOMP command"

  defp headers(headers, command) when is_list(headers) do
    if List.improper?(headers),
      do: raise(ArgumentError, "the headers of this #{command} are no proper list")

    if Enum.all?(headers, &plain?/1), do: headers, else: Enum.map(headers, &header(&1, command))
  end

  defp headers(_other, command),
    do: raise(ArgumentError, "the headers of this #{command} are not a list of {name, value}")

  # None, if the first is none.
  defp without_lengths(headers) do
    case List.keyfind(headers, "content-length", 0) do
      {_name, ""} = none -> [none | Enum.reject(headers, &(elem(&1, 0) == "content-length"))]
      _one_or_nil -> headers
    end
  end

  defp plain?({name, value}), do: is_binary(name) and name != "" and is_binary(value)
  defp plain?(_other), do: false

  # The encoder leaves out an empty one. The absence of a value is a mistake.
  defp header({"content-length", false}, _command), do: {"content-length", ""}
  defp header({"content-length", nil}, _command), do: {"content-length", "nil"}

  defp header({name, value}, command) do
    case string(name) do
      {:ok, ""} ->
        raise ArgumentError, "a header of this #{command} has no name"

      {:ok, name} ->
        {name, value(string(value), name, command)}

      :error ->
        raise ArgumentError, "the name of a header of this #{command} is not a string"
    end
  end

  defp header(_other, command),
    do: raise(ArgumentError, "a header of this #{command} is not a {name, value}")

  defp value({:ok, value}, _name, _command), do: value

  defp value(:error, name, command) do
    raise ArgumentError,
          "the value of header #{inspect(name)} of this #{command} is not a string, " <>
            "nor anything that to_string/1 takes"
  end

  defp string(text) when is_binary(text), do: {:ok, text}

  defp string(other) do
    {:ok, to_string(other)}
  rescue
    _no_characters -> :error
  end

  defp body(nil, _command), do: ""

  defp body(body, command) do
    binary = binary(body, command)

    # STOMP 1.2, "Body".
    if binary != "" and command not in [:send, :message, :error],
      do:
        raise(
          ArgumentError,
          "this #{command} has a body: only SEND, MESSAGE and ERROR may have one"
        )

    binary
  end

  defp binary(body, _command) when is_binary(body), do: body

  # As it is not inflated, it can be sent as it came.
  defp binary({:compressed, body, _reason}, command) when is_binary(body) do
    raise ArgumentError,
          "the body of this #{command} is {:compressed, body, reason}: send the body in it"
  end

  defp binary(body, command) do
    IO.iodata_to_binary(body)
  rescue
    ArgumentError ->
      raise ArgumentError, "the body of this #{command} is neither a binary nor iodata"
  end

  # With a wrong content-length the peer would read another frame, or several.
  defp check_length(nil, _body, _command), do: :ok

  # The body ends at the first NUL then.
  defp check_length({_name, ""}, body, command) do
    if String.contains?(body, <<0>>) do
      raise ArgumentError,
            "the body of this #{command} has a NUL, so it cannot be sent without content-length"
    end
  end

  defp check_length({_name, value}, body, command) do
    unless value =~ ~r/\A\d+\z/ and String.to_integer(value) == byte_size(body) do
      raise ArgumentError,
            "the content-length of this #{command} is #{inspect(value)}, " <>
              "and its body has #{byte_size(body)} bytes"
    end
  end

  # STOMP 1.2, "Value Encoding": in these frames only backslashes are escaped, so that any version can read
  # them.
  defp check_line_ends(headers, command) when command in [:connect, :stomp, :connected] do
    for {name, value} <- headers,
        String.contains?(name, [":", "\r", "\n"]) or String.contains?(value, ["\r", "\n"]) do
      raise ArgumentError,
            "cannot write this #{command}: only backslashes are escaped in it, and header " <>
              "#{inspect(name)} has a line end, or a colon in its name"
    end
  end

  defp check_line_ends(_headers, _command), do: :ok

  defp cost([], cost), do: cost

  defp cost([{name, value} | headers], cost),
    do: cost(headers, cost + @header_cost + byte_size(name) + byte_size(value))
end
