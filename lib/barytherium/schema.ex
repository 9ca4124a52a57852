defmodule Barytherium.Schema do
  @moduledoc false
  # A table of options is their validation and their documentation. An entry is
  # `name: {type, default, text}`. Besides the types in `valid?/2` there are `{:one_of, values}`,
  # `{:is, function, "what it expects"}`, and `{:secret, type}` for values that are not to be shown.

  import Bitwise, only: [<<<: 2]

  @unlimited 0xFFFF_FFFF_FFFF_FFFF
  @longest_wait 0xFFFF_FFFF
  # The largest socket buffer that can be requested from the operating system.
  @largest (1 <<< 31) - 1

  @type t :: [{atom(), {type(), term(), String.t()}}]
  @type type ::
          atom()
          | {:one_of, [atom()]}
          | {:is, (term() -> boolean()), String.t()}
          | {:secret, type()}

  @doc "The number that stands for no limit."
  @spec unlimited() :: pos_integer()
  def unlimited, do: @unlimited

  @doc "The longest time that a process or a timer of the VM can wait: 49 days, in milliseconds."
  @spec longest_wait() :: pos_integer()
  def longest_wait, do: @longest_wait

  @doc "The schema as a Markdown list."
  @spec docs(t()) :: String.t()
  def docs(schema) do
    Enum.map_join(schema, "\n", fn {name, {_type, default, text}} ->
      default = if is_nil(default), do: "", else: " Default: `#{inspect(default)}`."
      "  * `:#{name}` - #{text}#{default}"
    end)
  end

  @doc "The schema as a Markdown table."
  @spec table(t()) :: String.t()
  def table(schema) do
    rows =
      for {name, {_type, default, text}} <- schema do
        default = if is_nil(default), do: "", else: "`#{inspect(default)}`"
        "| `#{name}` | #{default} | #{text} |\n"
      end

    "| option | default | meaning |\n| --- | --- | --- |\n#{rows}"
  end

  @doc """
  Splits options into a map of those in the schema, with their defaults, and the others. Raises
  `ArgumentError` for an invalid value. See `effective/1`.
  """
  @spec split([term()], t()) :: {%{atom() => term()}, [term()]}
  def split(opts, schema) do
    {ours, others} = opts |> effective() |> Enum.split_with(&ours?(&1, schema))
    Enum.each(ours, &validate!(&1, schema))
    defaults = Map.new(schema, fn {name, {_type, default, _text}} -> {name, default} end)
    {Enum.into(ours, defaults), others}
  end

  @doc "Raises `ArgumentError` unless all options are in the schema. Returns them with the defaults."
  @spec all!([term()], t()) :: %{atom() => term()}
  def all!(opts, schema) do
    case split(opts, schema) do
      {options, []} -> options
      {_options, [other | _more]} -> raise_unknown(name(other), Keyword.keys(schema))
    end
  end

  @doc "The options that count: of several with the same name the first, unless it is nil, which means the default."
  @spec effective([term()]) :: [term()]
  def effective(opts) when is_list(opts) do
    if List.improper?(opts), do: raise(ArgumentError, "the options are not a list")

    # There may be several raw options of the socket.
    opts
    |> Enum.uniq_by(&if(name(&1) == :raw, do: &1, else: name(&1)))
    |> Enum.reject(&match?({_name, nil}, &1))
  end

  # The message does not show them, because one may be a password.
  def effective(_other), do: raise(ArgumentError, "the options are not a list")

  @doc "The name of an option, which is an atom or a tuple."
  @spec name(term()) :: term()
  def name(option) when is_tuple(option) and tuple_size(option) > 0, do: elem(option, 0)
  def name(option), do: option

  defp ours?({name, _value}, schema) when is_atom(name), do: Keyword.has_key?(schema, name)
  defp ours?(_other, _schema), do: false

  defp validate!({name, value}, schema) do
    {type, _default, _text} = schema[name]

    unless valid?(type, value) do
      value = if match?({:secret, _type}, type), do: "", else: ": #{inspect(value)}"

      raise ArgumentError,
            "invalid value for option #{inspect(name)}#{value}, and not #{expected(type)}"
    end
  end

  # A term that is not an atom may contain a password.
  defp shown(name) when is_atom(name), do: inspect(name)
  defp shown(_other), do: "that is no atom and no tuple with one"

  @doc "Raises `ArgumentError` for an option that does not exist, and names the nearest one."
  @spec raise_unknown(term(), [atom()]) :: no_return()
  def raise_unknown(name, known) do
    nearest = Enum.max_by(known, &String.jaro_distance(to_string(&1), text(name)))

    raise ArgumentError,
          "unknown option #{shown(name)}; the nearest that there is: #{inspect(nearest)}"
  end

  defp text(name) when is_atom(name), do: to_string(name)
  defp text(_other), do: ""

  @doc "Whether `value` is of `type`."
  @spec valid?(type(), term()) :: boolean()
  def valid?({:one_of, values}, value), do: value in values
  def valid?({:is, function, _expected}, value), do: function.(value)
  def valid?({:secret, type}, value), do: valid?(type, value)
  def valid?(:boolean, value), do: is_boolean(value)
  def valid?(:size, value), do: is_integer(value) and value in 0..@unlimited
  def valid?(:count, value), do: valid?(:size, value) and value > 0
  def valid?(:buffer, value), do: is_integer(value) and value in 1..@largest
  def valid?(:time, value), do: is_integer(value) and value in 0..@longest_wait
  def valid?(:timeout, value), do: value == :infinity or valid?(:time, value)
  def valid?(:mark, value), do: value == :infinity or valid?(:count, value)
  def valid?(:limit, value), do: value == :infinity or valid?(:size, value)
  def valid?(:string, value), do: is_binary(value) and value != ""
  def valid?(:list, value), do: is_list(value) and not List.improper?(value)

  @doc "Whether a value can be called by `call/1`: a function without arguments, or `{module, function, arguments}`."
  @spec callable?(term()) :: boolean()
  def callable?({module, function, args}),
    do: is_atom(module) and is_atom(function) and is_list(args)

  def callable?(value), do: is_function(value, 0)

  @doc "What it returns."
  @spec call((() -> term()) | {module(), atom(), [term()]}) :: term()
  def call({module, function, args}), do: apply(module, function, args)
  def call(function), do: function.()

  defp expected({:one_of, values}), do: Enum.map_join(values, " or ", &inspect/1)
  defp expected({:is, _function, expected}), do: expected
  defp expected({:secret, type}), do: expected(type)
  defp expected(:boolean), do: "true or false"
  defp expected(:size), do: "an integer from 0 on"
  defp expected(:count), do: "an integer from 1 on"
  defp expected(:buffer), do: "an integer from 1 to #{@largest}"
  defp expected(:time), do: "an integer from 0 to #{@longest_wait}"
  defp expected(:timeout), do: expected(:time) <> ", or :infinity"
  defp expected(:mark), do: expected(:count) <> ", or :infinity"
  defp expected(:limit), do: expected(:size) <> ", or :infinity"
  defp expected(:string), do: "a string with characters"
  defp expected(:list), do: "a list"
end
