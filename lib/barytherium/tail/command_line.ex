defmodule Barytherium.Tail.CommandLine do
  @moduledoc false
  # What the command-line programs have in common: how each starts and ends, and what is checked in its arguments.

  alias Barytherium.Client.Outbound
  alias Barytherium.Tail.{Signals, Target, Terminal}
  alias Barytherium.Text

  @typedoc "What is wrong in the arguments. `message/1` has a sentence for each but `:header`."
  @type reason ::
          {:unknown, String.t()}
          | {:invalid, String.t(), String.t()}
          | {:header, String.t()}
          | {:outside, atom(), integer()}
          | {:no_file, String.t()}
          | {:not_secure, atom()}
          | {:query, String.t()}
          | :url

  @tls [:cacertfile, :certfile, :keyfile, :insecure]

  @doc """
  Runs a program whose name is `command`, and returns its exit status. `options` and `help` are the modules
  that read the arguments and have the text of `--help`; `work` gets the options, and returns the status.
  """
  @spec run([String.t()], String.t(), {module(), module()}, (struct() -> non_neg_integer())) ::
          non_neg_integer()
  def run(argv, command, {options, help}, work) do
    case options.parse(argv) do
      {:ok, given} ->
        quietly(fn -> interruptible(fn -> work.(given) end) end)

      :help ->
        IO.puts(help.text(command))
        0

      {:error, reason} ->
        complain("#{options.message(reason)}\nSee #{command} --help")
        2
    end
  end

  # The program reports what happens, and the log would repeat it on stdout.
  defp quietly(fun) do
    %{level: level} = :logger.get_primary_config()
    :logger.set_primary_config(:level, :none)

    try do
      fun.()
    after
      :logger.set_primary_config(:level, level)
    end
  end

  @doc "Runs `fun`, which SIGTERM and Ctrl-C end as `Signals` says."
  @spec interruptible((() -> result)) :: result when result: term()
  def interruptible(fun) do
    Signals.trap()
    diverted = Terminal.divert_ctrl_c()

    try do
      fun.()
    after
      Terminal.release(diverted)
      Signals.untrap()
    end
  end

  @doc "The text of `--help` as the documentation of a Mix task: ExDoc would take its commands for Elixir."
  @spec documentation(String.t(), module()) :: String.t()
  def documentation(command, help),
    do: String.replace(help.text(command), ~r/(?<=\n\n)(?:    \S.*\n)+/, "```sh\n\\0```\n")

  @spec complain(String.t()) :: :ok
  def complain(text), do: IO.puts(:stderr, "Error: " <> text)

  @doc "Reads the arguments. `check` gets the options and the other arguments."
  @spec parse([String.t()], keyword(), (keyword(), [String.t()] -> result)) ::
          result | :help | {:error, reason()}
        when result: term()
  def parse(argv, switches, check) do
    {opts, arguments, invalid} =
      OptionParser.parse(argv, strict: [help: :boolean] ++ switches, aliases: [h: :help])

    cond do
      opts[:help] -> :help
      invalid != [] -> {:error, invalid(hd(invalid))}
      true -> check.(opts, arguments)
    end
  end

  defp invalid({name, nil}), do: {:unknown, name}
  defp invalid({name, value}), do: {:invalid, name, value}

  @spec target(String.t()) :: {:ok, Target.t()} | {:error, reason()}
  def target(url), do: with(:error <- Target.parse(url), do: {:error, :url})

  @doc "Every `--header`, as headers that a frame of this command may have."
  @spec headers(keyword(), :send | :subscribe) ::
          {:ok, Barytherium.Frame.frame_headers()} | {:error, reason()}
  def headers(opts, command) do
    texts = Keyword.get_values(opts, :header)
    headers = Enum.map(texts, &(&1 |> String.split(":", parts: 2) |> List.to_tuple()))

    case Enum.find(Enum.zip(texts, headers), &(not header?(elem(&1, 1), command))) do
      nil -> {:ok, headers}
      {text, _header} -> {:error, {:header, text}}
    end
  end

  defp header?({_name, _value} = header, command) do
    Outbound.check_headers!(command, [header]) == :ok
  rescue
    ArgumentError -> false
  end

  defp header?(_no_colon, _command), do: false

  @doc "Checks the numbers. Any integer is less than the atom `:infinity`."
  @spec within(keyword(), [{atom(), {integer(), integer() | :infinity}}]) ::
          :ok | {:error, reason()}
  def within(opts, limits) do
    outside? = fn {name, {least, most}} ->
      value = Keyword.get(opts, name, least)
      value < least or value > most
    end

    case Enum.find(limits, outside?) do
      nil -> :ok
      {name, _limits} -> {:error, {:outside, name, opts[name]}}
    end
  end

  @doc "Checks the options of TLS for a target, and that their files are there."
  @spec tls(keyword(), nil | Target.t()) :: :ok | {:error, reason()}
  def tls(opts, %{secure: true}) do
    paths = opts |> Keyword.take(@tls -- [:insecure]) |> Keyword.values()

    case Enum.find(paths, &(not File.regular?(&1))) do
      nil -> :ok
      path -> {:error, {:no_file, path}}
    end
  end

  # Nothing would be encrypted.
  def tls(opts, _plain) do
    case Enum.find(@tls, &opts[&1]) do
      nil -> :ok
      name -> {:error, {:not_secure, name}}
    end
  end

  @doc "The reason as a sentence, if it is the same for each program. What could be a password is not in it."
  @spec message(reason()) :: String.t()
  def message({:unknown, name}), do: "unknown option #{Text.line(name)}, or its value is missing"
  def message({:invalid, name, value}), do: "#{name} cannot be #{Text.line(value)}"

  def message({:outside, name, value}),
    do: "--#{String.replace(to_string(name), "_", "-")} cannot be #{value}"

  def message({:not_secure, name}),
    do: "--#{name} is for TLS, and the URL begins with stomp://, not with stomp+ssl://"

  def message({:query, name}),
    do: "?#{Text.line(name)}= is nothing that a URL can say: ?host=name is the virtual host"

  def message({:no_file, path}), do: "there is no file #{Text.line(path)}"

  # The URL is not shown, because it may contain a password.
  def message(:url),
    do: "the first argument is not a URL of the form stomp://user@host:port/destination"
end
