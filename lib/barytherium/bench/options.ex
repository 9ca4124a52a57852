defmodule Barytherium.Bench.Options do
  @moduledoc false
  # The command line of `mix barytherium.bench`.

  alias Barytherium.Tail
  alias Barytherium.Tail.Target

  @switches [
    ack: :string,
    cacertfile: :string,
    certfile: :string,
    connections: :integer,
    help: :boolean,
    insecure: :boolean,
    json: :boolean,
    keyfile: :string,
    persistent: :boolean,
    rate: :integer,
    seconds: :integer,
    size: :integer,
    svg: :string
  ]

  # A message begins with the time when it was due.
  @limits [
    connections: {1, 1_000},
    rate: {1, 10_000_000},
    seconds: {1, 86_400},
    size: {8, 100 * 1024 * 1024}
  ]

  @acks %{"auto" => :auto, "client" => :client, "client-individual" => :client_individual}

  defstruct target: nil,
            ack: :auto,
            cacertfile: nil,
            certfile: nil,
            connections: 1,
            insecure: false,
            json: false,
            keyfile: nil,
            persistent: true,
            rate: :infinity,
            seconds: 10,
            size: 256,
            svg: nil

  @type t :: %__MODULE__{
          target: nil | Target.t(),
          ack: :auto | :client | :client_individual,
          cacertfile: nil | String.t(),
          certfile: nil | String.t(),
          connections: pos_integer(),
          insecure: boolean(),
          json: boolean(),
          keyfile: nil | String.t(),
          persistent: boolean(),
          rate: pos_integer() | :infinity,
          seconds: pos_integer(),
          size: pos_integer(),
          svg: nil | String.t()
        }

  @spec parse([String.t()]) :: {:ok, t()} | :help | {:error, String.t()}
  def parse(argv) do
    {opts, arguments, invalid} = OptionParser.parse(argv, strict: @switches, aliases: [h: :help])

    cond do
      opts[:help] ->
        :help

      invalid != [] ->
        {:error, invalid |> hd() |> Tail.Options.invalid() |> Tail.Options.message()}

      true ->
        check(opts, arguments)
    end
  end

  defp check(opts, arguments) do
    with {:ok, ack} <- ack(opts[:ack] || "auto"),
         :ok <- within_limits(opts),
         {:ok, target} <- target(arguments) do
      options = struct!(__MODULE__, Keyword.delete(opts, :ack))
      {:ok, %{options | ack: ack, target: target}}
    end
  end

  defp ack(name) do
    with :error <- Map.fetch(@acks, name),
         do: {:error, "--ack is auto, client or client-individual"}
  end

  defp within_limits(opts) do
    outside = fn {name, {least, most}} -> Keyword.get(opts, name, least) not in least..most end

    case Enum.find(@limits, outside) do
      nil -> :ok
      {name, {least, most}} -> {:error, "--#{name} is from #{least} to #{most}"}
    end
  end

  defp target([]), do: {:ok, nil}

  defp target([url]) do
    with :error <- Target.parse(url), do: {:error, Tail.Options.message(:url)}
  end

  defp target(_more), do: {:error, "only one URL"}
end
