defmodule Barytherium.Bench.Options do
  @moduledoc false
  # The command line of `mix barytherium.bench`.

  alias Barytherium.Tail.{CommandLine, Target}

  @switches [
    ack: :string,
    cacertfile: :string,
    certfile: :string,
    connections: :integer,
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

  @type reason :: CommandLine.reason() | :ack | :several_urls

  @spec parse([String.t()]) :: {:ok, t()} | :help | {:error, reason()}
  def parse(argv), do: CommandLine.parse(argv, @switches, &check/2)

  defp check(opts, arguments) do
    with {:ok, ack} <- ack(opts[:ack] || "auto"),
         :ok <- CommandLine.within(opts, @limits),
         {:ok, target} <- target(arguments),
         :ok <- CommandLine.tls(opts, target) do
      options = struct!(__MODULE__, Keyword.delete(opts, :ack))
      {:ok, %{options | ack: ack, target: target}}
    end
  end

  defp ack(name), do: with(:error <- Map.fetch(@acks, name), do: {:error, :ack})

  defp target([]), do: {:ok, nil}
  defp target([url]), do: CommandLine.target(url)
  defp target(_more), do: {:error, :several_urls}

  @doc "The reason as a sentence. What could be a password is not in it."
  @spec message(reason()) :: String.t()
  def message(:ack), do: "--ack is auto, client or client-individual"
  def message(:several_urls), do: "only one URL"

  def message({:outside, name, _value}) do
    {least, most} = @limits[name]
    "--#{name} is from #{least} to #{most}"
  end

  def message(reason), do: CommandLine.message(reason)
end
