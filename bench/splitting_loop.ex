defmodule Bench.SplittingLoop do
  @moduledoc """
  The straightforward receive loop in Elixir: `recv`, `:binary.split`, cast.

  It splits what a STOMP client has to, unescapes headers that need it, honours `content-length`,
  and checks nothing.
  """

  alias Barytherium.{Connection, Frame}

  @commands %{
    "MESSAGE" => :message,
    "CONNECTED" => :connected,
    "RECEIPT" => :receipt,
    "ERROR" => :error
  }

  def loop(socket, listener), do: loop(socket, listener, "")

  defp loop(socket, listener, rest) do
    case Connection.recv(socket, 0, :infinity) do
      {:ok, bytes} ->
        {frames, rest} = parse(IO.iodata_to_binary([rest, bytes]), [])

        if frames != [],
          do: GenServer.cast(listener, {:barytherium, :frames, {frames, self()}})

        loop(socket, listener, rest)

      {:error, _closed} ->
        :ok
    end
  end

  @doc "All frames in `bytes`, and what is left."
  def parse("\n" <> bytes, frames), do: parse(bytes, frames)

  def parse(bytes, frames) do
    with [head, body] <- :binary.split(bytes, "\n\n"),
         [command | lines] = :binary.split(head, "\n", [:global]),
         headers = Enum.map(lines, &header/1),
         {:ok, body, rest} <- body(body, List.keyfind(headers, "content-length", 0)) do
      frame = %Frame{command: Map.fetch!(@commands, command), headers: headers, body: body}
      parse(rest, [frame | frames])
    else
      _partial -> {Enum.reverse(frames), bytes}
    end
  end

  defp header(line) do
    [name, value] = :binary.split(line, ":")
    {unescape(name), unescape(value)}
  end

  defp unescape(text) do
    case :binary.match(text, "\\") do
      :nomatch -> text
      _found -> unescape(text, "")
    end
  end

  defp unescape("\\n" <> rest, done), do: unescape(rest, done <> "\n")
  defp unescape("\\r" <> rest, done), do: unescape(rest, done <> "\r")
  defp unescape("\\c" <> rest, done), do: unescape(rest, done <> ":")
  defp unescape("\\\\" <> rest, done), do: unescape(rest, done <> "\\")
  defp unescape(<<byte, rest::binary>>, done), do: unescape(rest, done <> <<byte>>)
  defp unescape("", done), do: done

  defp body(bytes, nil) do
    case :binary.split(bytes, <<0>>) do
      [body, rest] -> {:ok, body, rest}
      [_partial] -> :partial
    end
  end

  defp body(bytes, {_name, length}) do
    length = String.to_integer(length)

    case bytes do
      <<body::binary-size(length), 0, rest::binary>> -> {:ok, body, rest}
      _partial -> :partial
    end
  end
end
