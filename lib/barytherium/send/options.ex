defmodule Barytherium.Send.Options do
  @moduledoc false
  # The command line of `mix barytherium.send`.

  alias Barytherium.Tail.{CommandLine, Target}
  alias Barytherium.Text

  @switches [
    cacertfile: :string,
    certfile: :string,
    content_type: :string,
    count: :integer,
    gzip: :boolean,
    header: :keep,
    insecure: :boolean,
    keyfile: :string,
    lines: :boolean,
    persistent: :boolean,
    rate: :integer
  ]

  @limits [count: {1, :infinity}, rate: {1, :infinity}]

  defstruct target: nil,
            destination: nil,
            body: nil,
            headers: [],
            cacertfile: nil,
            certfile: nil,
            keyfile: nil,
            insecure: false,
            content_type: nil,
            count: 1,
            gzip: false,
            lines: false,
            persistent: true,
            rate: :infinity

  @type t :: %__MODULE__{
          target: Target.t(),
          destination: String.t(),
          body: nil | String.t(),
          headers: Barytherium.Frame.frame_headers(),
          cacertfile: nil | String.t(),
          certfile: nil | String.t(),
          keyfile: nil | String.t(),
          insecure: boolean(),
          content_type: nil | String.t(),
          count: pos_integer(),
          gzip: boolean(),
          lines: boolean(),
          persistent: boolean(),
          rate: pos_integer() | :infinity
        }

  @type reason ::
          CommandLine.reason()
          | :no_destination
          | :no_body
          | :several_bodies
          | :body_and_lines
          | :count_and_lines

  @spec parse([String.t()]) :: {:ok, t()} | :help | {:error, reason()}
  def parse(argv), do: CommandLine.parse(argv, @switches, &check/2)

  defp check(opts, arguments) do
    with {:ok, headers} <- CommandLine.headers(opts, :send),
         :ok <- CommandLine.within(opts, @limits),
         {:ok, source} <- source(arguments, opts),
         :ok <- CommandLine.tls(opts, source.target),
         :ok <- once(opts) do
      options = struct!(__MODULE__, Keyword.delete(opts, :header))
      {:ok, struct!(options, Map.put(source, :headers, headers ++ own_headers(options)))}
    end
  end

  defp own_headers(options) do
    type = if options.content_type, do: [{"content-type", options.content_type}], else: []
    if options.gzip, do: type ++ [{"content-encoding", "gzip"}], else: type
  end

  defp source([], _opts), do: {:error, :url}

  defp source([url | rest], opts) do
    with {:ok, target} <- CommandLine.target(url),
         {:ok, body} <- body(rest, opts[:lines]) do
      case target.destination do
        nil -> {:error, :no_destination}
        destination -> {:ok, %{target: target, destination: destination, body: body}}
      end
    end
  end

  defp once(opts), do: if(opts[:lines] && opts[:count], do: {:error, :count_and_lines}, else: :ok)

  defp body([], true), do: {:ok, nil}
  defp body(_body, true), do: {:error, :body_and_lines}
  defp body([body], _no_lines), do: {:ok, body}
  defp body([], _no_lines), do: {:error, :no_body}
  defp body(_more, _no_lines), do: {:error, :several_bodies}

  @doc "The reason as a sentence. What could be a password is not in it."
  @spec message(reason()) :: String.t()
  def message({:header, text}),
    do:
      "--header is NAME:VALUE, and none of destination, receipt, transaction: #{Text.line(text)}"

  def message(:no_destination), do: "no destination: stomp://host/queue/a"
  def message(:no_body), do: "no BODY: a text, - for stdin, or @FILE; or --lines"
  def message(:several_bodies), do: "more than one BODY: put it in quotes"

  def message(:count_and_lines), do: "--count is for a BODY, and --lines sends each line once"

  def message(:body_and_lines),
    do: "--lines reads the messages from stdin, so there is no BODY"

  def message(reason), do: CommandLine.message(reason)
end
