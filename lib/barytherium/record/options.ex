defmodule Barytherium.Record.Options do
  @moduledoc false
  # The command line of `mix barytherium.record`.

  alias Barytherium.Tail.{CommandLine, Target}

  @switches [
    cacertfile: :string,
    certfile: :string,
    count: :integer,
    file_size: :integer,
    header: :keep,
    insecure: :boolean,
    keyfile: :string,
    seconds: :integer
  ]

  # The longest timer of the VM.
  @limits [count: {1, :infinity}, seconds: {1, 4_294_967}, file_size: {1, :infinity}]

  defstruct target: nil,
            file: nil,
            headers: [],
            cacertfile: nil,
            certfile: nil,
            count: :infinity,
            file_size: 1_024,
            insecure: false,
            keyfile: nil,
            seconds: :infinity

  @type t :: %__MODULE__{
          target: Target.t(),
          file: Path.t(),
          headers: Barytherium.Frame.frame_headers(),
          cacertfile: nil | String.t(),
          certfile: nil | String.t(),
          count: pos_integer() | :infinity,
          file_size: pos_integer(),
          insecure: boolean(),
          keyfile: nil | String.t(),
          seconds: pos_integer() | :infinity
        }

  @type reason :: CommandLine.reason() | :no_destination | :no_file

  @spec parse([String.t()]) :: {:ok, t()} | :help | {:error, reason()}
  def parse(argv), do: CommandLine.parse(argv, @switches, &check/2)

  defp check(opts, arguments) do
    with {:ok, headers} <- CommandLine.headers(opts, :subscribe),
         :ok <- CommandLine.within(opts, @limits),
         {:ok, target, file} <- source(arguments),
         :ok <- CommandLine.tls(opts, target) do
      options = struct!(__MODULE__, Keyword.delete(opts, :header))
      {:ok, %{options | target: target, file: file, headers: headers}}
    end
  end

  defp source([url | rest]) do
    with {:ok, target} <- CommandLine.target(url) do
      case {target.destination, rest} do
        {nil, _rest} ->
          {:error, :no_destination}

        {_destination, [file]} ->
          if file =~ "://", do: {:error, :no_file}, else: {:ok, target, file}

        {_destination, _rest} ->
          {:error, :no_file}
      end
    end
  end

  defp source([]), do: {:error, :url}

  @doc "The reason as a sentence. What could be a password is not in it."
  @spec message(reason()) :: String.t()
  def message(:no_destination), do: "no destination: stomp://host/topic/a"
  def message(:no_file), do: "the arguments are a URL and one FILE"
  def message({:header, _text} = reason), do: Barytherium.Tail.Options.message(reason)
  def message(reason), do: CommandLine.message(reason)
end
