defmodule Barytherium.Replay.Options do
  @moduledoc false
  # The command line of `mix barytherium.replay`.

  alias Barytherium.Tail.CommandLine
  alias Barytherium.Text

  @switches [from: :string, port: :integer, speed: :string]
  @limits [port: {1, 65_535}]

  defstruct file: nil, from: nil, port: 61_613, speed: 1.0

  @type t :: %__MODULE__{
          file: Path.t(),
          from: nil | DateTime.t(),
          port: :inet.port_number(),
          speed: float() | :infinity
        }

  @type reason :: CommandLine.reason() | :no_file | {:speed, String.t()} | {:from, String.t()}

  @spec parse([String.t()]) :: {:ok, t()} | :help | {:error, reason()}
  def parse(argv), do: CommandLine.parse(argv, @switches, &check/2)

  defp check(opts, arguments) do
    with :ok <- CommandLine.within(opts, @limits),
         {:ok, file} <- file(arguments),
         {:ok, speed} <- speed(opts[:speed] || "1"),
         {:ok, from} <- from(opts[:from]) do
      options = struct!(__MODULE__, Keyword.take(opts, [:port]))
      {:ok, %{options | file: file, speed: speed, from: from}}
    end
  end

  defp file([file]), do: {:ok, file}
  defp file(_other), do: {:error, :no_file}

  defp speed("max"), do: {:ok, :infinity}

  defp speed(text) do
    case Float.parse(text) do
      {speed, ""} when speed > 0 -> {:ok, speed}
      _other -> {:error, {:speed, text}}
    end
  end

  defp from(nil), do: {:ok, nil}

  defp from(text) do
    case DateTime.from_iso8601(text) do
      {:ok, from, _offset} -> {:ok, from}
      {:error, _reason} -> {:error, {:from, text}}
    end
  end

  @doc "The reason as a sentence."
  @spec message(reason()) :: String.t()
  def message(:no_file), do: "the argument is one FILE"

  def message({:speed, text}),
    do: "--speed is a number above 0, or max, and not #{Text.line(text)}"

  def message({:from, text}),
    do: "--from is a time such as 2026-11-28T08:00:00Z, and not #{Text.line(text)}"

  def message(reason), do: CommandLine.message(reason)
end
