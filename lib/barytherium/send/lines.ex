defmodule Barytherium.Send.Lines do
  @moduledoc false
  # The lines of stdin, as many together as are there: a file is sent in large pieces, and a line that comes alone at
  # once. A process reads ahead, but not without a limit.

  # Lines that are read ahead.
  @ahead 1_024

  @doc "Starts to read for the calling process."
  @spec start() :: pid()
  def start do
    owner = self()
    spawn_link(fn -> read(owner, @ahead) end)
  end

  defp read(owner, 0) do
    receive do: ({:more, count} -> read(owner, count))
  end

  defp read(owner, left) do
    case IO.binread(:stdio, :line) do
      line when is_binary(line) ->
        send(owner, {:line, self(), String.trim_trailing(line, "\n")})
        read(owner, left - 1)

      _end_or_error ->
        send(owner, {:line, self(), :eof})
    end
  end

  @doc "The next lines, at most `most`; `:eof` at the end; or a signal that came first."
  @spec next(pid(), pos_integer()) :: {:ok, [binary(), ...]} | :eof | {:signal, non_neg_integer()}
  def next(reader, most) do
    receive do
      {:signal, status} -> {:signal, status}
      {:line, ^reader, :eof} -> :eof
      {:line, ^reader, line} -> {:ok, [line | more(reader, most - 1)]}
    end
  end

  defp more(_reader, 0), do: []

  defp more(reader, most) do
    receive do
      {:line, ^reader, :eof} ->
        # For the next call.
        send(self(), {:line, reader, :eof})
        []

      {:line, ^reader, line} ->
        [line | more(reader, most - 1)]
    after
      0 -> []
    end
  end

  @doc "These lines have been sent."
  @spec taken(pid(), pos_integer()) :: :ok
  def taken(reader, count) do
    send(reader, {:more, count})
    :ok
  end
end
